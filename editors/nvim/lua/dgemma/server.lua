--- Where the server is: as told, on PATH, or in the Python environment that is active.

local M = {}

-- Short enough not to ask for Enter.
M.missing = "dgemma: no server found; :checkhealth dgemma says what to do"

---@param options dgemma.Options
---@return string[]? command nil if there is none
---@return string? origin where it was found
function M.command(options)
  if options.cmd then
    if vim.fn.executable(options.cmd[1]) == 1 then
      return options.cmd, "setup({ cmd })"
    end
    return nil
  end
  for _, variable in ipairs({ "VIRTUAL_ENV", "CONDA_PREFIX" }) do
    local folder = vim.env[variable]
    if folder then
      local path = vim.fs.joinpath(folder, vim.fn.has("win32") == 1 and "Scripts" or "bin", "dgemma-lsp")
      if vim.fn.executable(path) == 1 then
        return { path, "serve" }, "$" .. variable
      end
    end
  end
  if vim.fn.executable("dgemma-lsp") == 1 then
    return { vim.fn.exepath("dgemma-lsp"), "serve" }, "PATH"
  end
  return nil
end

--- Send a request, whichever way this Neovim's clients take it.
---@param client vim.lsp.Client
---@param method string
---@param params table
---@param handler fun(err: lsp.ResponseError?, result: any, context: table)
---@param buffer integer
---@return integer? request_id
function M.request(client, method, params, handler, buffer)
  local ok, request_id
  if vim.fn.has("nvim-0.11") == 1 then
    ok, request_id = client:request(method, params, handler, buffer)
  else
    ok, request_id = client.request(method, params, handler, buffer)
  end
  return ok and request_id or nil
end

---@param client vim.lsp.Client
---@param request_id integer
function M.cancel(client, request_id)
  if vim.fn.has("nvim-0.11") == 1 then
    client:cancel_request(request_id)
  else
    client.cancel_request(request_id)
  end
end

--- The client of a buffer.
---@param buffer? integer the current one if left out
---@return vim.lsp.Client?
function M.client(buffer)
  return vim.lsp.get_clients({ name = "dgemma", bufnr = buffer or vim.api.nvim_get_current_buf() })[1]
end

return M
