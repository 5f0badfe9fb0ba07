-- What users call. `plugin/dgemma.lua` calls `enable`; `setup` is for options only.

local compat = require("dgemma.compat")
local config = require("dgemma.config")
local server = require("dgemma.server")

local M = {}

--- Change options, and enable the server.
---@param options dgemma.Options?
function M.setup(options)
  config.set(options)
  M.enable()
end

--- Start the server for every buffer of the configured file types, now and later.
function M.enable()
  if compat.has_lsp_enable then
    vim.lsp.config(server.name, server.lsp_config())
    vim.lsp.enable(server.name)
    return
  end
  local group = vim.api.nvim_create_augroup("dgemma.enable", { clear = true })
  local filetypes = config.get().filetypes
  vim.api.nvim_create_autocmd("FileType", {
    group = group,
    pattern = filetypes,
    callback = function(event)
      server.start(event.buf)
    end,
  })
  for _, bufnr in ipairs(vim.api.nvim_list_bufs()) do
    if vim.api.nvim_buf_is_loaded(bufnr) and vim.tbl_contains(filetypes, vim.bo[bufnr].filetype) then
      server.start(bufnr)
    end
  end
end

--- For a status line: "" where the server does not run.
---@return string
function M.statusline()
  return require("dgemma.status").statusline()
end

--- Whether a suggestion is on the screen, for mappings of your own.
---@return boolean
function M.is_visible()
  return require("dgemma.suggest").is_visible()
end

--- Insert the suggestion, or a part of it.
---@param part "all"|"word"|"line"?
---@return boolean was_visible
function M.accept(part)
  return require("dgemma.suggest").accept(part or "all")
end

--- Show the next alternative, or the one before; asks for alternatives if there are none.
---@param count integer? 1 if nil
function M.next(count)
  require("dgemma.suggest").next(count or 1)
end

--- Take the suggestion off the screen.
---@return boolean was_visible
function M.dismiss()
  return require("dgemma.suggest").dismiss()
end

return M
