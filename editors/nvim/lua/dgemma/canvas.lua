--- The draft while it forms: each token as sure as the model is of it.

local M = {}

local namespace = vim.api.nvim_create_namespace("dgemma.canvas")

local function define_highlights()
  vim.api.nvim_set_hl(0, "DgemmaSure", { default = true, link = "String" })
  vim.api.nvim_set_hl(0, "DgemmaLikely", { default = true, link = "Comment" })
  vim.api.nvim_set_hl(0, "DgemmaNoise", { default = true, link = "NonText" })
end

---@param confidence number 0 to 1
---@return string
local function highlight(confidence)
  return confidence >= 0.9 and "DgemmaSure" or confidence >= 0.5 and "DgemmaLikely" or "DgemmaNoise"
end

---@param buffer integer
function M.clear(buffer)
  if vim.api.nvim_buf_is_valid(buffer) then
    vim.api.nvim_buf_clear_namespace(buffer, namespace, 0, -1)
  end
end

---@param _ any
---@param step table see editors/PROTOCOL.md
function M.on_canvas(_, step)
  local buffer = vim.uri_to_bufnr(step.uri)
  if not vim.api.nvim_buf_is_loaded(buffer) then
    return
  end
  M.clear(buffer)
  if step.done then
    return
  end
  define_highlights()
  local lines = { {} }
  for _, token in ipairs(step.tokens) do
    for index, piece in ipairs(vim.split(token.text, "\n", { plain = true })) do
      if index > 1 then
        lines[#lines + 1] = {}
      end
      table.insert(lines[#lines], { piece, highlight(token.confidence) })
    end
  end
  local row = step.range.start.line
  local text = vim.api.nvim_buf_get_lines(buffer, row, row + 1, false)[1]
  if text then
    vim.api.nvim_buf_set_extmark(buffer, namespace, row, #text, {
      virt_text = #lines[1] > 0 and lines[1] or nil,
      virt_text_pos = "eol",
      virt_lines = #lines > 1 and vim.list_slice(lines, 2) or nil,
    })
  end
end

return M
