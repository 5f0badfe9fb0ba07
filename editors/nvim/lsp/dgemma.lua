-- For `vim.lsp.enable("dgemma")` in Neovim 0.11 and later. What can be changed: `:help dgemma-setup`.
return require("dgemma").client_config()
