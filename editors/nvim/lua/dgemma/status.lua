--- What the server says it is doing, for a statusline.

local M = {}

---@class dgemma.Status
---@field state "loading"|"ready"|"busy"|"off"|"error"
---@field message string
---@field model? string
---@field device? string
---@field lastLatencyMs? number
---@field shown integer
---@field silent table<string, integer>

---@type dgemma.Status?
M.last = nil

local signs = { loading = "…", ready = "✓", busy = "⋯", off = "○", error = "✗" }

---@param _ any
---@param status dgemma.Status
function M.on_status(_, status)
  M.last = status
  vim.schedule(function()
    vim.cmd.redrawstatus()
    vim.api.nvim_exec_autocmds("User", { pattern = "DgemmaStatus", modeline = false })
  end)
end

---@return string
function M.line()
  local status = M.last
  if not status or not require("dgemma.server").client() then
    return ""
  end
  local latency = type(status.lastLatencyMs) == "number" and (" %d ms"):format(status.lastLatencyMs) or ""
  return ("dgemma %s%s"):format(signs[status.state] or status.state, latency)
end

return M
