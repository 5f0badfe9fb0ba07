-- :Dgemma and its subcommands.

local compat = require("dgemma.compat")
local server = require("dgemma.server")

local M = {}

--- The cursor as a position. On a line's last character, where normal mode cannot go further, it
--- means behind it: after leaving insert mode a fill goes where the typing ended.
---@param encoding string
---@return table position
local function cursor_position(encoding)
  local row, col = unpack(vim.api.nvim_win_get_cursor(0))
  local line = vim.api.nvim_get_current_line()
  local is_on_last = vim.fn.charidx(line, col) == vim.fn.strchars(line) - 1
  if is_on_last and vim.api.nvim_get_mode().mode == "n" then
    return { line = row - 1, character = compat.length(line, encoding) }
  end
  return vim.lsp.util.make_position_params(0, encoding).position
end

--- Where to work: the cursor, or the range of the command.
---@param opts table of nvim_create_user_command
---@return table argument uri, range, version
local function target(opts)
  local client = server.client()
  local encoding = client and client.offset_encoding or "utf-16"
  local bufnr = vim.api.nvim_get_current_buf()
  local range
  if opts.range == 2 then
    local first = vim.api.nvim_buf_get_mark(bufnr, "<")
    local last = vim.api.nvim_buf_get_mark(bufnr, ">")
    if first[1] ~= opts.line1 or last[1] ~= opts.line2 or vim.fn.visualmode() == "V" then
      local length = #vim.api.nvim_buf_get_lines(bufnr, opts.line2 - 1, opts.line2, false)[1]
      first, last = { opts.line1, 0 }, { opts.line2, math.max(0, length - 1) }
    end
    range = vim.lsp.util.make_given_range_params(first, last, bufnr, encoding).range
  else
    local position = cursor_position(encoding)
    range = { start = position, ["end"] = position }
  end
  return {
    uri = vim.uri_from_bufnr(bufnr),
    range = range,
    version = vim.lsp.util.buf_versions[bufnr],
  }
end

---@param name string of the server's command
---@return fun(opts: table)
local function fills(name)
  return function(opts)
    server.execute(name, target(opts))
  end
end

---@class dgemma.Subcommand
---@field run fun(opts: table, argument: string?)
---@field arguments string[]?

---@type table<string, dgemma.Subcommand>
M.subcommands = {
  fill = { run = fills("fill") },
  implement = { run = fills("implement") },
  docstring = { run = fills("docstring") },
}

M.subcommands["fill-all"] = {
  run = function(opts)
    local argument = target(opts)
    if opts.range ~= 2 then
      argument.range = nil
    end
    server.execute("fillAll", argument)
  end,
}

M.subcommands.rewrite = {
  arguments = { "25", "50", "75", "100" },
  run = function(opts, percent)
    local argument = target(opts)
    if percent then
      argument.strength = (tonumber(percent) or 0) / 100
    end
    server.execute("rewrite", argument)
  end,
}

M.subcommands.explain = {
  run = function() -- the server shows it
    server.execute("explainLast", { uri = vim.uri_from_bufnr(0) })
  end,
}

M.subcommands.toggle = {
  arguments = { "on", "off" },
  run = function(_, wanted)
    local argument = wanted and { on = wanted == "on" } or {}
    require("dgemma.suggest").dismiss()
    server.execute("toggle", argument, function(is_on)
      vim.notify("dgemma: suggestions are " .. (is_on and "on" or "off"))
    end)
  end,
}

M.subcommands.restart = {
  run = function(opts)
    local client = server.client()
    if client and not opts.bang then
      server.execute("restart", {}, function()
        vim.notify("dgemma: the model is loaded anew")
      end)
      return
    end
    if client then
      compat.stop(client)
    end
    vim.defer_fn(function()
      require("dgemma").enable()
      if compat.has_lsp_enable then
        vim.cmd.doautoall("nvim.lsp.enable FileType")
      end
    end, client and 500 or 0)
  end,
}

M.subcommands.status = {
  run = function()
    server.execute("status", {}, function(status)
      vim.notify(table.concat(require("dgemma.status").describe(status), "\n"))
    end)
  end,
}

M.subcommands.context = {
  run = function()
    local client = server.client()
    local position = client and cursor_position(client.offset_encoding)
    server.execute("context", { uri = vim.uri_from_bufnr(0), position = position }, function(text)
      local bufnr = vim.api.nvim_create_buf(false, true)
      vim.bo[bufnr].bufhidden = "wipe"
      vim.api.nvim_buf_set_lines(bufnr, 0, -1, false, vim.split(text, "\n", { plain = true }))
      vim.bo[bufnr].modifiable = false
      vim.cmd.split()
      vim.api.nvim_win_set_buf(0, bufnr)
    end)
  end,
}

M.subcommands.log = {
  run = function()
    vim.cmd.tabedit(vim.fn.fnameescape(compat.log_path()))
    vim.cmd.normal({ "G", bang = true })
  end,
}

M.subcommands.cancel = { run = server.cancel }

---@param opts table of nvim_create_user_command
function M.run(opts)
  local name, argument = unpack(opts.fargs)
  local subcommand = M.subcommands[name]
  if subcommand == nil then
    local known = table.concat(vim.fn.sort(vim.tbl_keys(M.subcommands)), ", ")
    vim.notify(("dgemma: no :Dgemma %s; there are %s"):format(name, known), vim.log.levels.ERROR)
    return
  end
  subcommand.run(opts, argument)
end

---@param lead string
---@param line string
---@return string[]
function M.complete(lead, line)
  local given = line:match("Dgemma!?%s+(%S+)%s")
  local choices = vim.fn.sort(vim.tbl_keys(M.subcommands))
  if given then
    choices = M.subcommands[given] and M.subcommands[given].arguments or {}
  end
  return vim.tbl_filter(function(choice)
    return vim.startswith(choice, lead)
  end, choices)
end

return M
