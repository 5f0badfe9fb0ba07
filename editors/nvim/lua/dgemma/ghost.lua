-- Suggestions as ghost text, by extmarks: for Neovim before 0.12, and where it was asked for.
-- The request is the one that 0.12 sends, textDocument/inlineCompletion.

local compat = require("dgemma.compat")
local config = require("dgemma.config")
local suggestion = require("dgemma.suggestion")

local AUTOMATIC, INVOKED = 2, 1

local M = {}

M.namespace = vim.api.nvim_create_namespace("dgemma.ghost")

---@class dgemma.Ghost State of one buffer.
---@field client_id integer
---@field suggestions dgemma.Suggestion[]
---@field index integer of the one that is shown
---@field timer uv.uv_timer_t?
---@field request_id integer?
---@field is_automatic boolean whether it asks by itself when the typing pauses
---@field on_end fun()? called once when what was asked for is gone

---@type table<integer, dgemma.Ghost>
local ghosts = {}

---@param bufnr integer
local function erase(bufnr)
  if vim.api.nvim_buf_is_valid(bufnr) then
    vim.api.nvim_buf_clear_namespace(bufnr, M.namespace, 0, -1)
  end
end

---@param bufnr integer
---@param ghost dgemma.Ghost
local function drop(bufnr, ghost)
  erase(bufnr)
  ghost.suggestions, ghost.index = {}, 1
  local on_end = ghost.on_end
  ghost.on_end = nil
  if on_end then
    on_end()
  end
end

---@param ghost dgemma.Ghost
local function withdraw(ghost)
  if ghost.timer then
    ghost.timer:stop()
    if not ghost.timer:is_closing() then -- defer_fn closes it when it fires
      ghost.timer:close()
    end
    ghost.timer = nil
  end
  local client = vim.lsp.get_client_by_id(ghost.client_id)
  if ghost.request_id and client then
    compat.cancel(client, ghost.request_id)
  end
  ghost.request_id = nil
end

--- Draw what is left of the present suggestion; false if nothing is.
---@param bufnr integer
---@param ghost dgemma.Ghost
---@return boolean
local function draw(bufnr, ghost)
  erase(bufnr)
  local present = ghost.suggestions[ghost.index]
  local rest = present and suggestion.rest(present)
  if rest == nil or rest == "" then
    return false
  end
  local lines = vim.tbl_map(function(line)
    return { { line, "DgemmaGhost" } }
  end, vim.split(rest, "\n", { plain = true }))
  if #ghost.suggestions > 1 then
    local last = lines[#lines]
    last[#last + 1] = { (" (%d/%d)"):format(ghost.index, #ghost.suggestions), "DgemmaGhostMore" }
  end
  local row, col = suggestion.cursor()
  vim.api.nvim_buf_set_extmark(bufnr, M.namespace, row, col, {
    virt_text = table.remove(lines, 1),
    virt_text_pos = "inline",
    virt_lines = #lines > 0 and lines or nil,
    hl_mode = "combine",
  })
  return true
end

--- An item of the answer, in bytes; nil if it is none for this cursor.
---@param item table lsp.InlineCompletionItem
---@param encoding string
---@return dgemma.Suggestion?
local function to_suggestion(item, encoding)
  local row, col, line = suggestion.cursor()
  local text = item.insertText
  if type(text) ~= "string" then
    return nil
  end
  local first, last = col, col
  if item.range then
    if item.range.start.line ~= row then
      return nil
    end
    first = compat.byte_offset(line, item.range.start.character, encoding)
    last = compat.byte_offset(line, item.range["end"].character, encoding)
  end
  return {
    row = row,
    col = first,
    covered = line:sub(first + 1, col),
    behind = math.max(0, last - col),
    text = text,
  }
end

---@param bufnr integer
---@param ghost dgemma.Ghost
---@param kind integer
local function request(bufnr, ghost, kind)
  withdraw(ghost)
  local client = vim.lsp.get_client_by_id(ghost.client_id)
  if client == nil or vim.api.nvim_get_current_buf() ~= bufnr then
    return
  end
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  params.context = { triggerKind = kind }
  local tick = vim.api.nvim_buf_get_changedtick(bufnr)
  local cursor = vim.api.nvim_win_get_cursor(0)
  local function is_stale()
    return not vim.startswith(vim.api.nvim_get_mode().mode, "i")
      or vim.api.nvim_get_current_buf() ~= bufnr
      or tick ~= vim.api.nvim_buf_get_changedtick(bufnr)
      or not vim.deep_equal(cursor, vim.api.nvim_win_get_cursor(0))
  end
  local _, request_id
  _, request_id = compat.request(client, "textDocument/inlineCompletion", params, function(err, result)
    if ghost.request_id == request_id then
      ghost.request_id = nil
    end
    if err or not result or is_stale() then
      return
    end
    ghost.suggestions, ghost.index = {}, 1
    for _, item in ipairs(result.items or result) do
      table.insert(ghost.suggestions, to_suggestion(item, client.offset_encoding))
    end
    if not draw(bufnr, ghost) then
      drop(bufnr, ghost)
    end
  end, bufnr)
  ghost.request_id = request_id
end

--- After a keystroke: keep what still fits, and ask anew when the typing pauses.
---@param bufnr integer
---@param ghost dgemma.Ghost
local function typed(bufnr, ghost)
  withdraw(ghost)
  if draw(bufnr, ghost) and #ghost.suggestions > 1 then
    return -- alternatives stay as long as one of them is followed
  end
  if not suggestion.rest(ghost.suggestions[ghost.index] or { row = -1 }) then
    drop(bufnr, ghost)
  end
  if ghost.is_automatic then
    ghost.timer = vim.defer_fn(function()
      if vim.startswith(vim.api.nvim_get_mode().mode, "i") then
        request(bufnr, ghost, AUTOMATIC)
      end
    end, config.get().debounce)
  end
end

---@param bufnr integer
---@param client vim.lsp.Client
---@param is_automatic boolean whether suggestions come while typing, or only by `ask`
function M.attach(bufnr, client, is_automatic)
  M.detach(bufnr)
  local ghost = { client_id = client.id, suggestions = {}, index = 1, is_automatic = is_automatic }
  ghosts[bufnr] = ghost
  local group = vim.api.nvim_create_augroup("dgemma.ghost:" .. bufnr, { clear = true })
  vim.api.nvim_create_autocmd({ "InsertEnter", "CursorMovedI", "TextChangedI", "TextChangedP" }, {
    group = group,
    buffer = bufnr,
    callback = function()
      typed(bufnr, ghost)
    end,
  })
  vim.api.nvim_create_autocmd({ "InsertLeave", "BufLeave" }, {
    group = group,
    buffer = bufnr,
    callback = function()
      M.dismiss(bufnr)
    end,
  })
end

---@param bufnr integer
function M.detach(bufnr)
  local ghost = ghosts[bufnr]
  if ghost then
    M.dismiss(bufnr)
    ghosts[bufnr] = nil
    vim.api.nvim_del_augroup_by_name("dgemma.ghost:" .. bufnr)
  end
end

--- Ask for alternatives at the cursor.
---@param bufnr integer
---@param on_end fun()? when they are off the screen again
function M.ask(bufnr, on_end)
  local ghost = ghosts[bufnr]
  if ghost then
    drop(bufnr, ghost)
    ghost.on_end = on_end
    request(bufnr, ghost, INVOKED)
  elseif on_end then
    on_end()
  end
end

---@param bufnr integer
---@return boolean
function M.is_visible(bufnr)
  return #vim.api.nvim_buf_get_extmarks(bufnr, M.namespace, 0, -1, { limit = 1 }) > 0
end

---@param bufnr integer
---@param part dgemma.Part
---@return boolean was_visible
function M.accept(bufnr, part)
  local ghost = ghosts[bufnr]
  local present = ghost and M.is_visible(bufnr) and ghost.suggestions[ghost.index]
  if not present then
    return false
  end
  withdraw(ghost)
  local left, fits = suggestion.insert(bufnr, present, part)
  ghost.suggestions, ghost.index = { left }, 1
  if not draw(bufnr, ghost) then
    drop(bufnr, ghost)
  end
  return fits
end

---@param bufnr integer
---@param count integer
function M.next(bufnr, count)
  local ghost = ghosts[bufnr]
  if ghost and #ghost.suggestions > 0 then
    ghost.index = (ghost.index - 1 + count) % #ghost.suggestions + 1
    draw(bufnr, ghost)
  end
end

---@param bufnr integer
---@return integer
function M.count(bufnr)
  return ghosts[bufnr] and #ghosts[bufnr].suggestions or 0
end

---@param bufnr integer
---@return boolean was_visible
function M.dismiss(bufnr)
  local ghost = ghosts[bufnr]
  if ghost == nil then
    return false
  end
  local was_visible = M.is_visible(bufnr)
  withdraw(ghost)
  drop(bufnr, ghost)
  return was_visible
end

return M
