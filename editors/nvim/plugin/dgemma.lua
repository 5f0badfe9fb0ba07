-- Installed is enabled: nothing has to be called. `require("dgemma").setup()` changes the defaults.
if vim.g.loaded_dgemma then
  return
end
vim.g.loaded_dgemma = true

if vim.fn.has("nvim-0.10") == 0 then
  vim.notify("dgemma: needs Neovim 0.10 or later", vim.log.levels.ERROR)
  return
end

require("dgemma.commands").create()

-- After the user's configuration, which may call setup() or set g:dgemma_disable.
local function start()
  if not vim.g.dgemma_disable then
    require("dgemma").enable()
  end
end

if vim.v.vim_did_enter == 1 then
  start()
else
  vim.api.nvim_create_autocmd("VimEnter", { once = true, callback = start })
end
