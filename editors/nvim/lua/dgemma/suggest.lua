-- Suggestions while typing, whoever shows them: Neovim 0.12 itself, or `ghost.lua`.

local compat = require("dgemma.compat")
local config = require("dgemma.config")
local ghost = require("dgemma.ghost")
local suggestion = require("dgemma.suggestion")

local M = {}

---@return "native"|"extmarks"|false
function M.shown_by()
  local wanted = config.get().inline
  if wanted == "native" or wanted == "auto" then
    return compat.has_inline_completion and "native" or "extmarks"
  end
  return wanted
end

---@return boolean
local function is_native(bufnr)
  return M.shown_by() == "native" and vim.lsp.inline_completion.is_enabled({ bufnr = bufnr })
end

---@param bufnr integer
---@param client vim.lsp.Client
function M.attach(bufnr, client)
  local by = M.shown_by()
  ghost.attach(bufnr, client, by == "extmarks")
  if by == "native" then
    vim.lsp.inline_completion.enable(true, { bufnr = bufnr })
  end
end

---@param bufnr integer
---@param client vim.lsp.Client
function M.detach(bufnr, client)
  ghost.detach(bufnr)
end

--- Whether Neovim shows a suggestion of its own.
---@param bufnr integer
---@return boolean
local function is_native_visible(bufnr)
  local namespace = vim.api.nvim_get_namespaces()["nvim.lsp.inline_completion"]
  return namespace ~= nil
    and #vim.api.nvim_buf_get_extmarks(bufnr, namespace, 0, -1, { limit = 1 }) > 0
end

---@return boolean
function M.is_visible()
  local bufnr = vim.api.nvim_get_current_buf()
  return ghost.is_visible(bufnr) or (is_native(bufnr) and is_native_visible(bufnr))
end

--- Insert a part of what Neovim shows. Its own way does not look at what was typed since the answer
--- came: it would put "value" behind "va" as "vavalue".
---@param bufnr integer
---@param part dgemma.Part
---@param on_stale fun()? what to do if the suggestion does not belong here
---@return boolean was_visible
local function accept_native(bufnr, part, on_stale)
  if not is_native_visible(bufnr) then
    return false
  end
  return vim.lsp.inline_completion.get({
    bufnr = bufnr,
    on_accept = function(item)
      if type(item.insert_text) ~= "string" then
        return item -- a snippet of another server
      end
      local row, col, line = suggestion.cursor()
      local first_row, first, _, last = row, col, row, col
      if item.range then
        first_row, first, _, last = item.range:to_extmark()
      end
      local _, fits = suggestion.insert(bufnr, {
        row = first_row,
        col = first,
        covered = line:sub(first + 1, math.min(last, col)),
        behind = math.max(0, last - col),
        text = item.insert_text,
      }, part)
      if not fits and on_stale then
        on_stale()
      end
    end,
  })
end

---@param part dgemma.Part
---@param on_stale fun()? called, later, if the suggestion turns out not to belong here
---@return boolean was_visible
function M.accept(part, on_stale)
  local bufnr = vim.api.nvim_get_current_buf()
  if ghost.accept(bufnr, part) then
    return true
  end
  return is_native(bufnr) and accept_native(bufnr, part, on_stale)
end

--- Show another alternative, or ask for some.
---@param count integer
function M.next(count)
  local bufnr = vim.api.nvim_get_current_buf()
  if ghost.count(bufnr) > 1 then
    ghost.next(bufnr, count)
    return
  end
  local was_native = is_native(bufnr)
  if was_native then -- Neovim has no way to ask; it steps aside for as long as ours are shown
    vim.lsp.inline_completion.enable(false, { bufnr = bufnr })
  end
  ghost.ask(bufnr, was_native and function()
    if vim.api.nvim_buf_is_valid(bufnr) then
      vim.lsp.inline_completion.enable(true, { bufnr = bufnr })
    end
  end or nil)
end

---@return boolean was_visible
function M.dismiss()
  local bufnr = vim.api.nvim_get_current_buf()
  if ghost.dismiss(bufnr) then
    return true
  end
  if is_native(bufnr) and is_native_visible(bufnr) then
    -- Neovim drops what it shows when it is enabled anew, and asks again at the next keystroke.
    vim.lsp.inline_completion.enable(false, { bufnr = bufnr })
    vim.lsp.inline_completion.enable(true, { bufnr = bufnr })
    return true
  end
  return false
end

return M
