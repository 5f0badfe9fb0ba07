--- `:checkhealth dgemma`.

local M = {}

function M.check()
  local health = vim.health
  local dgemma, server = require("dgemma"), require("dgemma.server")
  health.start("dgemma")
  health.ok("Neovim " .. tostring(vim.version()))
  health.info(
    dgemma.has_native_completion() and "suggestions: by vim.lsp.inline_completion"
      or "suggestions: as ghost text of this plugin"
  )
  local command, origin = server.command(dgemma.options)
  if not command then
    health.error("no server found", {
      "install it: pip install dgemma-lsp (or pipx, or uv tool)",
      "or name it: require('dgemma').setup({ cmd = { '/path/to/dgemma-lsp', 'serve' } })",
    })
    return
  end
  health.ok(("server: %s (by %s)"):format(table.concat(command, " "), origin))
  local asked = vim.system({ command[1], "--version" }, { text = true, timeout = 30000 }):wait()
  if asked.code == 0 then
    health.ok(vim.trim(asked.stdout))
  else
    health.warn("the server does not tell its version", { vim.trim(asked.stderr or "") })
  end
  local clients = vim.lsp.get_clients({ name = "dgemma" })
  if #clients == 0 then
    health.info("not running: it starts with the first document of these types: " .. table.concat(dgemma.options.filetypes, ", "))
    return
  end
  health.ok("running, for " .. vim.tbl_count(clients[1].attached_buffers) .. " buffer(s)")
  local status = require("dgemma.status").last
  if status and status.state == "error" then
    health.error(status.message)
  elseif status then
    health.ok(("%s: %s on %s"):format(status.state, status.model or "no model yet", status.device or "no device"))
  end
end

return M
