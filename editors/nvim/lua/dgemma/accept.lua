--- Taking a suggestion, or its next word or line. A key that has nothing to take does what it did.

local M = {}

--- The next word of a text, with the blanks before it and the line break before those.
---@param text string
---@return string
function M.next_word(text)
  return text:match("^%s*[%w_]+") or text:match("^%s*[^%w_%s]+") or text
end

--- The next line of a text, with the line break before it.
---@param text string
---@return string
function M.next_line(text)
  return text:match("^\n?[^\n]*") or text
end

---@param buffer integer
---@return boolean
local function is_shown(buffer)
  if not require("dgemma").has_native_completion() then
    return require("dgemma.ghost").is_shown(buffer)
  end
  local namespace = vim.api.nvim_create_namespace("nvim.lsp.inline_completion")
  return #vim.api.nvim_buf_get_extmarks(buffer, namespace, 0, -1, { limit = 1 }) > 0
end

--- What is left of an item of Neovim's at the cursor, or the part of it.
---
--- It may be shown for some keys more than it was made for (neovim#36529): then what was typed of
--- it is taken off, and the rest goes in at the cursor.
---@param item vim.lsp.inline_completion.Item
---@param part? fun(text: string): string
---@return vim.lsp.inline_completion.Item? nil if it does not fit any more
function M.at_cursor(item, part)
  if type(item.insert_text) ~= "string" or not item.range then
    return item
  end
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  local start_row, start_column = item.range:to_extmark()
  local line = vim.api.nvim_get_current_line()
  local typed = line:sub(start_column + 1, column)
  if start_row ~= row - 1 or not vim.startswith(item.insert_text, typed) then
    return nil
  end
  if typed == "" and not part then
    return item
  end
  local rest = item.insert_text:sub(#typed + 1)
  item.insert_text = part and part(rest) or rest
  item.range, item.command = nil, nil
  return item
end

--- Take the suggestion that is shown.
---@param part? fun(text: string): string what of it; all if left out
---@return boolean was_shown
function M.accept(part)
  local buffer = vim.api.nvim_get_current_buf()
  if not is_shown(buffer) then
    return false
  end
  if require("dgemma").has_native_completion() then
    return vim.lsp.inline_completion.get({
      on_accept = function(item)
        return M.at_cursor(item, part)
      end,
    })
  end
  -- A mapping that is an expression must not change the text.
  vim.schedule(function()
    require("dgemma.ghost").accept(buffer, part)
  end)
  return true
end

--- What a key did before it was ours.
---@param key string
---@param before table as maparg() tells it
---@return string
local function otherwise(key, before)
  if vim.tbl_isempty(before) then
    return key
  end
  if before.callback then
    local result = before.callback()
    return before.expr == 1 and result or ""
  end
  return before.expr == 1 and vim.api.nvim_eval(before.rhs) or before.rhs
end

---@param buffer integer
---@param keys dgemma.Keys
function M.map(buffer, keys)
  local parts = { accept = false, accept_word = M.next_word, accept_line = M.next_line }
  for name, part in pairs(parts) do
    local key = keys[name]
    if key then
      local before = vim.api.nvim_buf_call(buffer, function()
        return vim.fn.maparg(key, "i", false, true)
      end)
      if before.desc ~= "dgemma" then
        vim.keymap.set("i", key, function()
          return M.accept(part or nil) and "" or otherwise(key, before)
        end, {
          buffer = buffer,
          expr = true,
          remap = not vim.tbl_isempty(before) and before.noremap == 0,
          replace_keycodes = true,
          desc = "dgemma",
        })
      end
    end
  end
end

return M
