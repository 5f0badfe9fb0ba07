-- What differs between Neovim 0.10, 0.11 and 0.12, in one place.

local M = {}

M.has_lsp_enable = vim.fn.has("nvim-0.11") == 1
M.has_inline_completion = vim.fn.has("nvim-0.12") == 1 and vim.lsp.inline_completion ~= nil

---@param client vim.lsp.Client
---@param method string
---@param params table
---@param handler fun(err: table?, result: any, context: table?)
---@param bufnr integer
---@return boolean is_sent
---@return integer? request_id
function M.request(client, method, params, handler, bufnr)
  if M.has_lsp_enable then
    return client:request(method, params, handler, bufnr)
  end
  return client.request(method, params, handler, bufnr)
end

---@param client vim.lsp.Client
---@param request_id integer
function M.cancel(client, request_id)
  if M.has_lsp_enable then
    client:cancel_request(request_id)
  else
    client.cancel_request(request_id)
  end
end

---@param client vim.lsp.Client
function M.stop(client)
  if M.has_lsp_enable then
    client:stop()
  else
    client.stop()
  end
end

--- The byte offset in a line of a position in the client's encoding; at most the line's length.
---@param line string
---@param character integer
---@param encoding string "utf-8", "utf-16" or "utf-32"
---@return integer
function M.byte_offset(line, character, encoding)
  if encoding == "utf-8" then
    return math.min(character, #line)
  end
  if M.has_lsp_enable then
    return vim.str_byteindex(line, encoding, character, false)
  end
  local last = M.length(line, encoding)
  return vim.str_byteindex(line, math.min(character, last), encoding == "utf-16")
end

--- A line's length in units of the client's encoding.
---@param line string
---@param encoding string "utf-8", "utf-16" or "utf-32"
---@return integer
function M.length(line, encoding)
  if encoding == "utf-8" then
    return #line
  end
  if M.has_lsp_enable then
    return vim.str_utfindex(line, encoding)
  end
  local in_utf32, in_utf16 = vim.str_utfindex(line)
  return encoding == "utf-16" and in_utf16 or in_utf32
end

---@return string
function M.log_path()
  return vim.lsp.log.get_filename and vim.lsp.log.get_filename() or vim.lsp.get_log_path()
end

return M
