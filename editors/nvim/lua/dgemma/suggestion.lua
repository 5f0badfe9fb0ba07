-- One suggestion: what is left of it after some typing, and how a part of it gets into the buffer.
-- Knows no server and shows nothing.

---@class dgemma.Suggestion
---@field row integer 0-based
---@field col integer byte offset in the line where what it replaces begins
---@field covered string what stood between there and the cursor when it was made
---@field behind integer bytes behind the cursor that it replaces too
---@field text string

---@alias dgemma.Part "all"|"word"|"line"

local M = {}

--- The cursor of the current window, 0-based, and its line.
---@return integer row
---@return integer col
---@return string line
function M.cursor()
  local row, col = unpack(vim.api.nvim_win_get_cursor(0))
  return row - 1, col, vim.api.nvim_get_current_line()
end

--- What is still to come, if what was typed since is its beginning.
---@param suggestion dgemma.Suggestion
---@return string? rest
---@return integer? from byte offset from which the line is replaced by it
function M.rest(suggestion)
  local row, col, line = M.cursor()
  if row ~= suggestion.row or col < suggestion.col then
    return nil
  end
  local typed = line:sub(suggestion.col + 1, col)
  if vim.startswith(suggestion.text, typed) then
    return suggestion.text:sub(#typed + 1), col
  end
  if typed == suggestion.covered then
    return suggestion.text, suggestion.col
  end
  return nil
end

--- The beginning of a text: a word with the blanks before it, or up to a line's end.
---@param text string
---@param part dgemma.Part
---@return string
function M.head(text, part)
  if part == "word" then
    return text:match("^%s*[%w_\128-\255]+") or text:match("^%s*[^%w_%s\128-\255]+") or text
  elseif part == "line" then
    return text:match("^\n?[^\n]*")
  end
  return text
end

--- Insert a part of a suggestion at the cursor. It is one step for undo.
---@param bufnr integer of the current window
---@param suggestion dgemma.Suggestion
---@param part dgemma.Part
---@return dgemma.Suggestion? left what is left of it; nil if nothing is
---@return boolean fits false if it no longer belongs here, and nothing was inserted
function M.insert(bufnr, suggestion, part)
  local rest, from = M.rest(suggestion)
  if rest == nil or rest == "" then
    return nil, false
  end
  local row, col, line = M.cursor()
  local head = M.head(rest, part)
  local is_whole = #head == #rest
  local to = is_whole and math.min(col + suggestion.behind, #line) or col
  local lines = vim.split(head, "\n", { plain = true })
  vim.bo[bufnr].undolevels = vim.bo[bufnr].undolevels -- setting it ends an undo step
  vim.api.nvim_buf_set_text(bufnr, row, from, row, to, lines)
  local end_row = row + #lines - 1
  local end_col = #lines[#lines] + (#lines == 1 and from or 0)
  vim.api.nvim_win_set_cursor(0, { end_row + 1, end_col })
  if is_whole then
    return nil, true
  end
  return {
    row = end_row,
    col = end_col,
    covered = "",
    behind = suggestion.behind,
    text = rest:sub(#head + 1),
  }, true
end

return M
