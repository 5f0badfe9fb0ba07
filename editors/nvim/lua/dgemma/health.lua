-- :checkhealth dgemma

local compat = require("dgemma.compat")
local server = require("dgemma.server")
local suggest = require("dgemma.suggest")

local M = {}

local health = vim.health

local DOCTOR_MS = 120000 -- the first start of torch on a cold disk takes its time

---@param cmd string[]
---@param timeout integer ms
---@return vim.SystemCompleted
local function run(cmd, timeout)
  local is_started, job = pcall(vim.system, cmd, { text = true })
  if not is_started then
    return { code = 1, signal = 0, stdout = "", stderr = tostring(job) }
  end
  return job:wait(timeout)
end

local function check_neovim()
  local version = tostring(vim.version())
  if vim.fn.has("nvim-0.10") == 0 then
    health.error(("Neovim %s is too old, 0.10 or later is needed"):format(version))
    return
  end
  local shown_by = suggest.shown_by()
  local how = {
    native = "suggestions are shown by Neovim (vim.lsp.inline_completion)",
    extmarks = "suggestions are shown by the plugin (extmarks)",
  }
  health.ok(("Neovim %s: %s"):format(version, how[shown_by] or "suggestions are off (inline = false)"))
end

local function check_server()
  local cmd, where = server.find()
  if cmd == nil then
    health.error("there is no server", { where })
    return
  end
  local version = run({ cmd[1], "--version" }, DOCTOR_MS)
  if version.code ~= 0 then
    health.error(
      ("`%s --version` failed with %d"):format(cmd[1], version.code),
      vim.split(vim.trim(version.stderr or ""), "\n")
    )
    return
  end
  health.ok(("%s, found by %s: %s"):format(vim.trim(version.stdout), where, table.concat(cmd, " ")))
  if vim.fs.basename(cmd[1]):match("^dgemma%-lsp") == nil then
    return -- a command of the user's own; it may know no `doctor`
  end
  local doctor = run({ cmd[1], "doctor" }, DOCTOR_MS)
  local report = vim.trim((doctor.stdout or "") .. (doctor.stderr or ""))
  if doctor.code == 0 then
    health.ok("`dgemma-lsp doctor` filled a hole:\n" .. report)
  else
    health.error("`dgemma-lsp doctor` found a problem:\n" .. report)
  end
end

local function check_clients()
  local clients = vim.lsp.get_clients({ name = server.name })
  if #clients == 0 then
    health.info("the server does not run; it starts with the first file of the option filetypes")
  end
  for _, client in ipairs(clients) do
    local status = require("dgemma.status").by_client[client.id]
    local message = ("the server runs in %s, attached to %d buffers, positions in %s"):format(
      client.config.root_dir or "no folder",
      vim.tbl_count(client.attached_buffers),
      client.offset_encoding
    )
    if status and status.state == "error" then
      health.error(message, { status.message })
    else
      health.ok(message .. (status and "; " .. status.message or ""))
    end
  end
end

function M.check()
  health.start("dgemma: editor")
  check_neovim()
  health.start("dgemma: server")
  check_server()
  check_clients()
  health.info("log: " .. compat.log_path())
end

return M
