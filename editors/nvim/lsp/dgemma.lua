-- For Neovim 0.11 and later: vim.lsp.enable("dgemma").

return require("dgemma.server").lsp_config()
