;;; emacs_code_action.el --- run by test_emacs.py  -*- lexical-binding: t -*-

;; emacs --batch -l SNIPPET -l emacs_code_action.el FILE CLIENT
;; Puts the cursor behind the first line's end, applies "Fill here" as a user
;; would choose it, and saves the file.

(require 'cl-lib)

(defun wait-for (what look)
  "Wait until LOOK is true; fail with WHAT after 60 seconds."
  (with-timeout (60 (error "No %s; last messages: %s" what
                           (with-current-buffer (messages-buffer) (buffer-string))))
    (while (not (funcall look))
      (accept-process-output nil 0.05))))

(defun choose (_prompt collection &rest _)
  "Choose \"Fill here\" in COLLECTION, as COMPLETING-READ would let a user do."
  (let ((entries (all-completions "" collection)))
    (or (cl-find-if (lambda (entry) (string-prefix-p "Fill here" entry)) entries)
        (error "No such action in %S" entries))))

(let ((file (pop command-line-args-left))
      (client (pop command-line-args-left)))
  (find-file file)
  (goto-char (point-min))
  (end-of-line 2)
  (pcase client
    ("eglot"
     (setq eglot-sync-connect 60)
     (let ((last-nonmenu-event ?a)) (call-interactively #'eglot)))
    ("lsp-mode"
     (setq lsp-auto-guess-root t lsp-session-file (concat file ".session"))
     (lsp)
     (wait-for "workspace"
               (lambda ()
                 (and (lsp-workspaces)
                      (eq 'initialized (lsp--workspace-status (car (lsp-workspaces)))))))))
  (cl-letf (((symbol-function 'completing-read) #'choose)
            ;; eglot asks before it applies an edit that comes from the server.
            ((symbol-function 'y-or-n-p) #'always))
    (let ((last-nonmenu-event ?a))
      (call-interactively (key-binding (kbd "C-c d")))))
  (wait-for "edit" #'buffer-modified-p)
  (save-buffer)
  (kill-emacs 0))
