-- The draft as it denoises (`dgemma/canvas`): the less certain a token, the fainter. Opt-in, and
-- nothing else depends on it.

local compat = require("dgemma.compat")
local highlight = require("dgemma.highlight")

local M = {}

M.namespace = vim.api.nvim_create_namespace("dgemma.canvas")

---@param bufnr integer
function M.clear(bufnr)
  if vim.api.nvim_buf_is_valid(bufnr) then
    vim.api.nvim_buf_clear_namespace(bufnr, M.namespace, 0, -1)
  end
end

--- Tokens as lines of virtual text.
---@param tokens { text: string, confidence: number, accepted: boolean }[]
---@return [string, string][][]
local function to_lines(tokens)
  local lines = { {} }
  for _, token in ipairs(tokens) do
    for number, piece in ipairs(vim.split(token.text, "\n", { plain = true })) do
      if number > 1 then
        lines[#lines + 1] = {}
      end
      if piece ~= "" then
        table.insert(lines[#lines], { piece, highlight.of_confidence(token.confidence) })
      end
    end
  end
  return lines
end

---@param params table see editors/PROTOCOL.md
---@param context { client_id: integer }
function M.on_canvas(params, context)
  local bufnr = vim.uri_to_bufnr(params.uri)
  local client = vim.lsp.get_client_by_id(context.client_id)
  if not vim.api.nvim_buf_is_valid(bufnr) then
    return
  end
  vim.api.nvim_buf_del_extmark(bufnr, M.namespace, params.id) -- holes filled together have one each
  local is_current = type(params.version) ~= "number"
    or params.version == vim.lsp.util.buf_versions[bufnr]
  if params.done or #params.tokens == 0 or not client or not is_current then
    return
  end
  local first, last = params.range.start, params.range["end"]
  local is_insertion = vim.deep_equal(first, last)
  local row = is_insertion and first.line or last.line
  local line = vim.api.nvim_buf_get_lines(bufnr, row, row + 1, false)[1]
  if line == nil then
    return
  end
  local lines = to_lines(params.tokens)
  local mark = { id = params.id, hl_mode = "combine" }
  if is_insertion then
    mark.virt_text = table.remove(lines, 1)
    mark.virt_text_pos = "inline"
  end
  mark.virt_lines = #lines > 0 and lines or nil
  local col = compat.byte_offset(line, (is_insertion and first or last).character, client.offset_encoding)
  vim.api.nvim_buf_set_extmark(bufnr, M.namespace, row, col, mark)
end

return M
