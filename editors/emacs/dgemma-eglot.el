;;; dgemma-eglot.el --- dgemma-lsp in eglot  -*- lexical-binding: t -*-

;; (load "/path/to/dgemma-eglot.el"), then M-x eglot in a Python buffer.
;; eglot has no inline completions; C-c d opens the code actions, and the
;; completion menu has an entry that fills.  eglot runs one server in a buffer,
;; so this one takes the place of another Python server.

(require 'eglot)

(add-to-list 'eglot-server-programs
             '((python-mode python-ts-mode)
               . ("dgemma-lsp" "serve" :initializationOptions (:completion "on"))))

(defun dgemma-code-actions ()
  "List what can be filled at the cursor or rewritten in the region.
`eglot-code-actions' takes the symbol at point for a region."
  (interactive)
  (let ((start (if (use-region-p) (region-beginning) (point)))
        (end (if (use-region-p) (region-end) (point))))
    (eglot-code-actions start end "refactor.rewrite" t)))

(define-key eglot-mode-map (kbd "C-c d") #'dgemma-code-actions)

(provide 'dgemma-eglot)
;;; dgemma-eglot.el ends here
