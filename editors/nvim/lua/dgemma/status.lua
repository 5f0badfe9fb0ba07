-- What the server says about itself in `dgemma/status`, for a status line.

local server = require("dgemma.server")

local M = {}

---@class dgemma.Status
---@field state "loading"|"ready"|"busy"|"off"|"error"
---@field message string
---@field model string?
---@field device string?
---@field lastLatencyMs number?
---@field shown integer
---@field silent table<string, integer>

---@type table<integer, dgemma.Status> by client
M.by_client = {}

---@param params dgemma.Status
---@param context { client_id: integer }
function M.on_status(params, context)
  M.by_client[context.client_id] = params
  vim.api.nvim_exec_autocmds("User", { pattern = "DgemmaStatus", data = params, modeline = false })
  vim.cmd.redrawstatus()
end

---@return string
function M.statusline()
  local client = server.client()
  if client == nil then
    return ""
  end
  local status = M.by_client[client.id]
  if status == nil then
    return "dgemma"
  elseif status.state == "ready" then
    local is_known = type(status.lastLatencyMs) == "number"
    return is_known and ("dgemma %.0f ms"):format(status.lastLatencyMs) or "dgemma"
  end
  return "dgemma: " .. (status.state == "busy" and "filling" or status.state)
end

--- A status in words.
---@param status dgemma.Status
---@return string[]
function M.describe(status)
  local lines = { ("dgemma: %s"):format(status.message) }
  if status.model and status.model ~= vim.NIL then
    local latency = type(status.lastLatencyMs) == "number"
        and (", last suggestion after %.0f ms"):format(status.lastLatencyMs)
      or ""
    lines[#lines + 1] = ("model %s on %s%s"):format(status.model, tostring(status.device), latency)
  end
  local silent = {}
  for reason, count in vim.spairs(status.silent or {}) do
    silent[#silent + 1] = ("%d %s"):format(count, reason)
  end
  lines[#lines + 1] = ("%d shown, silent: %s"):format(
    status.shown or 0,
    #silent > 0 and table.concat(silent, ", ") or "never"
  )
  return lines
end

return M
