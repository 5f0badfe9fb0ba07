;;; dgemma-lsp-mode.el --- dgemma-lsp in lsp-mode  -*- lexical-binding: t -*-

;; (load "/path/to/dgemma-lsp-mode.el"), then M-x lsp in a Python buffer.
;; It runs beside another Python server.  C-c d opens the code actions; where
;; lsp-mode has inline completions (after 9.0.0), they are switched on.

(require 'lsp-mode)

(add-to-list 'lsp-language-id-configuration '(python-ts-mode . "python"))

(lsp-register-client
 (make-lsp-client
  :new-connection (lsp-stdio-connection '("dgemma-lsp" "serve"))
  :activation-fn (lsp-activate-on "python")
  :server-id 'dgemma
  :add-on? t))

(define-key lsp-mode-map (kbd "C-c d") #'lsp-execute-code-action)

(when (fboundp 'lsp-inline-completion-mode)
  (add-hook 'lsp-managed-mode-hook #'lsp-inline-completion-mode))

(provide 'dgemma-lsp-mode)
;;; dgemma-lsp-mode.el ends here
