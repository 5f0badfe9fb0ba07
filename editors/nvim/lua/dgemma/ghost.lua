--- Suggestions as ghost text where Neovim (before 0.12) does not show inline completions itself.

local server = require("dgemma.server")

local M = {}

local namespace = vim.api.nvim_create_namespace("dgemma.ghost")

---@class dgemma.Ghost
---@field client_id integer
---@field text string
---@field range lsp.Range
---@field tick integer the buffer's changedtick it belongs to

---@type table<integer, dgemma.Ghost> by buffer
local shown = {}
---@type table<integer, uv.uv_timer_t> by buffer
local timers = {}
---@type table<integer, { client: integer, id: integer }> by buffer
local pending = {}

---@param buffer integer
local function withdraw(buffer)
  local request = pending[buffer]
  pending[buffer] = nil
  local client = request and vim.lsp.get_client_by_id(request.client)
  if client then
    server.cancel(client, request.id)
  end
end

---@param buffer integer
function M.hide(buffer)
  shown[buffer] = nil
  if vim.api.nvim_buf_is_valid(buffer) then
    vim.api.nvim_buf_clear_namespace(buffer, namespace, 0, -1)
  end
end

---@param buffer integer
---@param ghost dgemma.Ghost
local function show(buffer, ghost)
  M.hide(buffer)
  shown[buffer] = ghost
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  local lines = vim.split(ghost.text, "\n", { plain = true })
  local below = {}
  for index = 2, #lines do
    below[#below + 1] = { { lines[index], "Comment" } }
  end
  vim.api.nvim_buf_set_extmark(buffer, namespace, row - 1, column, {
    virt_text = { { lines[1], "Comment" } },
    virt_text_pos = "inline",
    virt_lines = #below > 0 and below or nil,
    hl_mode = "combine",
  })
end

---@param client_id integer
---@param buffer integer
local function ask(client_id, buffer)
  local client = vim.lsp.get_client_by_id(client_id)
  if not client or vim.api.nvim_get_current_buf() ~= buffer or vim.fn.mode() ~= "i" then
    return
  end
  withdraw(buffer)
  local tick = vim.api.nvim_buf_get_changedtick(buffer)
  local cursor = vim.api.nvim_win_get_cursor(0)
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  params.context = { triggerKind = 2 }
  local request_id = server.request(client, "textDocument/inlineCompletion", params, function(err, result)
    pending[buffer] = nil
    local item = not err and result and (result.items or result)[1]
    local is_here = vim.api.nvim_get_current_buf() == buffer
      and vim.fn.mode() == "i"
      and vim.api.nvim_buf_get_changedtick(buffer) == tick
      and vim.deep_equal(vim.api.nvim_win_get_cursor(0), cursor)
    if item and is_here then
      show(buffer, { client_id = client_id, text = item.insertText, range = item.range, tick = tick })
    end
  end, buffer)
  pending[buffer] = request_id and { client = client_id, id = request_id } or nil
end

--- Ask a while after each key, and take down what no longer fits at once.
---@param client_id integer
---@param buffer integer
---@param debounce integer milliseconds
function M.attach(client_id, buffer, debounce)
  local group = vim.api.nvim_create_augroup("dgemma.ghost." .. buffer, {})
  vim.api.nvim_create_autocmd({ "TextChangedI", "CursorMovedI", "InsertEnter" }, {
    group = group,
    buffer = buffer,
    callback = function()
      M.hide(buffer)
      local timer = timers[buffer] or vim.uv.new_timer()
      timers[buffer] = timer
      timer:stop()
      timer:start(debounce, 0, vim.schedule_wrap(function()
        ask(client_id, buffer)
      end))
    end,
  })
  vim.api.nvim_create_autocmd({ "InsertLeave", "BufLeave", "LspDetach" }, {
    group = group,
    buffer = buffer,
    callback = function()
      withdraw(buffer)
      M.hide(buffer)
    end,
  })
end

---@param buffer integer
---@return boolean
function M.is_shown(buffer)
  return shown[buffer] ~= nil
end

--- Put the suggestion, or what `part` makes of its text, into the buffer.
---@param buffer integer
---@param part? fun(text: string): string
function M.accept(buffer, part)
  local ghost = shown[buffer]
  M.hide(buffer)
  local client = ghost and vim.lsp.get_client_by_id(ghost.client_id)
  if not client or vim.api.nvim_buf_get_changedtick(buffer) ~= ghost.tick then
    return
  end
  local text = part and part(ghost.text) or ghost.text
  local encoding = client.offset_encoding
  local row, column = ghost.range.start.line, ghost.range.start.character
  local last = vim.api.nvim_buf_get_lines(buffer, row, row + 1, false)[1] or ""
  local function to_byte(character)
    return vim.str_byteindex and vim.fn.has("nvim-0.11") == 1
        and vim.str_byteindex(last, encoding, character, false)
      or vim.lsp.util._str_byteindex_enc(last, character, encoding)
  end
  local first_byte = to_byte(column)
  -- A part leaves what the suggestion would have replaced.
  local last_byte = part and first_byte or to_byte(ghost.range["end"].character)
  local lines = vim.split(text, "\n", { plain = true })
  vim.api.nvim_buf_set_text(buffer, row, first_byte, row, last_byte, lines)
  local end_column = #lines[#lines] + (#lines == 1 and first_byte or 0)
  vim.api.nvim_win_set_cursor(0, { row + #lines, end_column })
end

return M
