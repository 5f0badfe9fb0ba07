-- Where the server is, and what it is told at its start.

local compat = require("dgemma.compat")
local config = require("dgemma.config")

local M = {}

M.name = "dgemma"

local REQUEST_FAILED = -32803

---@type boolean
local is_told = false

--- The repository that this plugin came with, if it did.
---@return string?
local function repository()
  local here = vim.uv.fs_realpath(debug.getinfo(1, "S").source:sub(2))
  local root = here and vim.fn.fnamemodify(here, ":h:h:h:h:h")
  return root and vim.uv.fs_stat(root .. "/dgemma_lsp/server.py") and root or nil
end

--- Folders of Python environments whose server may be started.
---@return string[]
local function environments()
  local root = repository()
  local folders = { vim.env.VIRTUAL_ENV or "", vim.env.CONDA_PREFIX or "" }
  folders[#folders + 1] = root and root .. "/.venv" or ""
  return vim.tbl_filter(function(folder)
    return folder ~= ""
  end, folders)
end

--- The command that starts the server, and where it was found.
---@return string[]? cmd nil if there is none
---@return string where for people; without a command, what to do about it
function M.find()
  local chosen = config.get().cmd
  if chosen then
    if vim.fn.executable(chosen[1]) == 1 then
      return chosen, "the option cmd"
    end
    return nil, ("the option cmd names %q, which cannot be run"):format(chosen[1])
  end
  local on_path = vim.fn.exepath("dgemma-lsp")
  if on_path ~= "" then
    return { on_path, "serve" }, "PATH"
  end
  local is_windows = vim.fn.has("win32") == 1
  local inside = is_windows and "/Scripts/dgemma-lsp.exe" or "/bin/dgemma-lsp"
  for _, folder in ipairs(environments()) do
    if vim.fn.executable(folder .. inside) == 1 then
      return { folder .. inside, "serve" }, folder
    end
  end
  return nil, M.how_to_install()
end

--- One line that is short enough not to need a prompt, where the path is not long.
---@return string
function M.how_to_install()
  local root = repository()
  local source = root and vim.fn.fnamemodify(root, ":~") or "dgemma-lsp"
  return ("no server: `pipx install %s`, see :help dgemma"):format(source)
end

--- Say once what is missing.
---@param problem string
local function tell_once(problem)
  if not is_told then
    is_told = true
    vim.notify("dgemma: " .. problem, vim.log.levels.WARN)
  end
end

--- The folder whose settings count for a buffer; nil, after a message, if there is no server.
---@param bufnr integer
---@return string?
local function root_of(bufnr)
  local cmd, problem = M.find()
  if cmd == nil then
    tell_once(problem)
    return nil
  end
  local root = vim.fs.root(bufnr, config.get().root_markers)
  local file = vim.api.nvim_buf_get_name(bufnr)
  return root or (file ~= "" and vim.fs.dirname(file)) or vim.uv.cwd()
end

---@return table
local function capabilities()
  return {
    textDocument = { inlineCompletion = { dynamicRegistration = false } },
    workspace = { executeCommand = { dynamicRegistration = false } }, -- Neovim can, and does not say
    experimental = { dgemma = { status = true, canvas = config.get().canvas } },
  }
end

local handlers = {
  ["dgemma/status"] = function(_, params, context)
    require("dgemma.status").on_status(params, context)
  end,
  ["dgemma/canvas"] = function(_, params, context)
    require("dgemma.canvas").on_canvas(params, context)
  end,
}

--- Start the server that is there by now. Neovim would not ask `root_dir`, and so nobody would be
--- told, if the command were a name that cannot be run.
---@param dispatchers vim.lsp.rpc.Dispatchers
---@return vim.lsp.rpc.PublicClient
local function start_found(dispatchers)
  return vim.lsp.rpc.start(assert(M.find()), dispatchers)
end

--- What `vim.lsp.config` wants.
---@return table
function M.lsp_config()
  local options = config.get()
  return {
    cmd = M.find() or start_found,
    filetypes = options.filetypes,
    root_dir = function(bufnr, on_dir)
      local root = root_of(bufnr)
      if root then
        on_dir(root)
      end
    end,
    capabilities = capabilities(),
    settings = { dgemma = options.settings },
    init_options = options.settings,
    handlers = handlers,
  }
end

--- Start the server for a buffer, or attach the one that runs: what `vim.lsp.enable` does on 0.11.
---@param bufnr integer
function M.start(bufnr)
  if vim.bo[bufnr].buftype ~= "" then
    return
  end
  local root = root_of(bufnr)
  if root == nil then
    return
  end
  local start = M.lsp_config()
  start.name = M.name
  start.root_dir = root
  start.filetypes = nil
  start.capabilities = vim.tbl_deep_extend(
    "force",
    vim.lsp.protocol.make_client_capabilities(),
    start.capabilities
  )
  vim.lsp.start(start, { bufnr = bufnr })
end

--- The client of a buffer.
---@param bufnr integer? of the current one if nil
---@return vim.lsp.Client?
function M.client(bufnr)
  return vim.lsp.get_clients({ name = M.name, bufnr = bufnr or 0 })[1]
end

--- Run one of the server's commands.
---@param command string without "dgemma."
---@param argument table
---@param on_result fun(result: any)?
function M.execute(command, argument, on_result)
  local client = M.client()
  if client == nil then
    local cmd, problem = M.find()
    problem = cmd and "the server does not run for this buffer (:checkhealth dgemma)" or problem
    vim.notify("dgemma: " .. problem, vim.log.levels.WARN)
    return
  end
  local params = {
    command = "dgemma." .. command,
    arguments = { next(argument) and argument or vim.empty_dict() },
  }
  local bufnr = vim.api.nvim_get_current_buf()
  local _, request_id = compat.request(client, "workspace/executeCommand", params, function(err, result)
    M.last_request = nil
    if err and err.code ~= REQUEST_FAILED then -- of that the server has told already
      vim.notify("dgemma: " .. err.message, vim.log.levels.ERROR)
    elseif not err and on_result then
      on_result(result)
    end
  end, bufnr)
  M.last_request = request_id and { client_id = client.id, id = request_id } or nil
end

--- Withdraw the last command if it is not done yet.
function M.cancel()
  local last = M.last_request
  local client = last and vim.lsp.get_client_by_id(last.client_id)
  M.last_request = nil
  if client then
    compat.cancel(client, last.id)
  end
end

---@type { client_id: integer, id: integer }?
M.last_request = nil

return M
