--- `:Dgemma`: what the server's commands do, at the cursor or for the lines of a range.

local server = require("dgemma.server")

local M = {}

---@param client vim.lsp.Client
---@param command string
---@param argument table
---@param on_result? fun(result: any)
local function execute(client, command, argument, on_result)
  local params = { command = command, arguments = { argument } }
  server.request(client, "workspace/executeCommand", params, function(err, result)
    if err then
      -- The server has told the user already; only what it refused is told here.
      if err.code == -32602 then
        vim.notify("dgemma: " .. err.message, vim.log.levels.ERROR)
      end
    elseif on_result then
      on_result(result)
    end
  end, vim.api.nvim_get_current_buf())
end

---@param client vim.lsp.Client
---@param lines? { first: integer, last: integer } from 1
---@return table argument of a command that fills
local function target(client, lines)
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  local range = { start = params.position, ["end"] = params.position }
  if lines then
    local params_of_lines = vim.lsp.util.make_given_range_params(
      { lines.first, 0 },
      { lines.last, vim.v.maxcol },
      0,
      client.offset_encoding
    )
    range = params_of_lines.range
    range["end"] = { line = lines.last, character = 0 }
  end
  return { uri = params.textDocument.uri, range = range }
end

---@param text string
local function show_text(text)
  vim.cmd.new()
  local buffer = vim.api.nvim_get_current_buf()
  vim.bo[buffer].buftype = "nofile"
  vim.bo[buffer].bufhidden = "wipe"
  vim.api.nvim_buf_set_lines(buffer, 0, -1, false, vim.split(text, "\n", { plain = true }))
end

---@type table<string, fun(client: vim.lsp.Client, lines?: table)>
local actions = {
  ["fill"] = function(client, lines)
    execute(client, "dgemma.fill", target(client, lines))
  end,
  ["fill-all"] = function(client, lines)
    local argument = target(client, lines)
    execute(client, "dgemma.fillAll", lines and argument or { uri = argument.uri })
  end,
  ["rewrite"] = function(client, lines)
    if lines then
      execute(client, "dgemma.rewrite", target(client, lines))
    else
      vim.notify("dgemma: rewrite needs a range, as in :'<,'>Dgemma rewrite", vim.log.levels.WARN)
    end
  end,
  ["implement"] = function(client)
    execute(client, "dgemma.implement", target(client))
  end,
  ["docstring"] = function(client)
    execute(client, "dgemma.docstring", target(client))
  end,
  ["explain"] = function(client)
    execute(client, "dgemma.explainLast", { uri = target(client).uri })
  end,
  ["toggle"] = function(client)
    execute(client, "dgemma.toggle", vim.empty_dict(), function(is_on)
      vim.notify("dgemma: " .. (is_on and "on" or "off"))
    end)
  end,
  ["restart"] = function(client)
    execute(client, "dgemma.restart", vim.empty_dict(), function()
      vim.notify("dgemma: the model is loaded again")
    end)
  end,
  ["status"] = function(client)
    execute(client, "dgemma.status", vim.empty_dict(), function(status)
      vim.notify(("dgemma: %s (%s)"):format(status.state, status.message))
    end)
  end,
  ["context"] = function(client)
    local argument = target(client)
    argument.position, argument.range = argument.range.start, nil
    execute(client, "dgemma.context", argument, show_text)
  end,
}

function M.create()
  local names = vim.tbl_keys(actions)
  table.insert(names, "log")
  table.sort(names)
  vim.api.nvim_create_user_command("Dgemma", function(command)
    local name = command.args
    if name == "log" then
      vim.cmd.tabedit(vim.fn.has("nvim-0.11") == 1 and vim.lsp.log.get_filename() or vim.lsp.get_log_path())
      return
    end
    local action = actions[name]
    local client = server.client()
    if not action then
      vim.notify("dgemma: no such command: " .. name .. " (see :help :Dgemma)", vim.log.levels.WARN)
    elseif not client then
      vim.notify("dgemma: no server runs here; see :checkhealth dgemma", vim.log.levels.WARN)
    else
      action(client, command.range > 0 and { first = command.line1, last = command.line2 } or nil)
    end
  end, {
    nargs = 1,
    range = true,
    desc = "Fill code in the middle",
    complete = function(start)
      return vim.tbl_filter(function(name)
        return vim.startswith(name, start)
      end, names)
    end,
  })
end

return M
