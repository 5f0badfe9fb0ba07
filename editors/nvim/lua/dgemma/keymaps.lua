-- Keys in insert mode. Each does its work only while a suggestion is visible; else whatever the key
-- did before, be it a mapping of the buffer, a global one (however late it is made), or the key.

local config = require("dgemma.config")
local suggest = require("dgemma.suggest")

local M = {}

---@type table<integer, table<string, table>> buffer -> key -> the buffer's own mapping before ours
local replaced = {}

---@param keys string
---@return string
local function codes(keys)
  return vim.api.nvim_replace_termcodes(keys, true, true, true)
end

---@param bufnr integer
---@param lhs string
---@return table? mapping
local function mapping_before(bufnr, lhs)
  local own = replaced[bufnr] and replaced[bufnr][lhs]
  if own then
    return own
  end
  for _, mapping in ipairs(vim.api.nvim_get_keymap("i")) do
    if codes(mapping.lhs) == codes(lhs) then
      return mapping
    end
  end
end

--- Type keys before whatever is typed already.
---@param keys string with codes, not names
---@param mode "n"|"m" without or with mappings
local function feed(keys, mode)
  vim.api.nvim_feedkeys(keys, "i" .. mode, false)
end

--- Do what the key did before.
---@param bufnr integer
---@param lhs string
local function fall_back(bufnr, lhs)
  local mapping = mapping_before(bufnr, lhs)
  if mapping == nil then
    feed(codes(lhs), "n")
    return
  end
  local rhs = mapping.rhs and mapping.rhs:gsub("<[sS][iI][dD]>", "<SNR>" .. mapping.sid .. "_")
  local keys
  if mapping.callback then
    keys = mapping.callback()
  elseif mapping.expr == 1 then
    keys = vim.api.nvim_eval(rhs)
  else
    keys = codes(rhs)
  end
  if mapping.expr == 1 and mapping.replace_keycodes == 1 and type(keys) == "string" then
    keys = codes(keys)
  elseif mapping.callback and mapping.expr ~= 1 then
    return -- it has done its work
  end
  if type(keys) ~= "string" or keys == "" then
    return
  end
  -- As Vim does it: a mapping that begins with its own key is not mapped again there.
  local key = codes(lhs)
  if mapping.noremap == 1 or keys == key then
    feed(keys, "n")
  elseif vim.startswith(keys, key) then
    feed(keys:sub(#key + 1), "m")
    feed(key, "n")
  else
    feed(keys, "m")
  end
end

---@type table<string, fun(on_stale: fun()): boolean>
local actions = {
  accept = function(on_stale)
    return vim.fn.pumvisible() == 0 and suggest.accept("all", on_stale)
  end,
  accept_word = function(on_stale)
    return suggest.accept("word", on_stale)
  end,
  accept_line = function(on_stale)
    return suggest.accept("line", on_stale)
  end,
  next = function()
    suggest.next(1)
    return true
  end,
  previous = function()
    suggest.next(-1)
    return true
  end,
  dismiss = suggest.dismiss,
}

local descriptions = {
  accept = "accept the suggestion",
  accept_word = "accept a word of the suggestion",
  accept_line = "accept a line of the suggestion",
  next = "next suggestion",
  previous = "previous suggestion",
  dismiss = "dismiss the suggestion",
}

---@param bufnr integer
function M.attach(bufnr)
  M.detach(bufnr)
  replaced[bufnr] = {}
  for name, lhs in pairs(config.get().keys or {}) do
    local act = actions[name]
    if act and lhs then
      local before = vim.fn.maparg(lhs, "i", false, true)
      if before.buffer == 1 then
        replaced[bufnr][lhs] = before
      end
      local function otherwise()
        fall_back(bufnr, lhs)
      end
      vim.keymap.set("i", lhs, function()
        if not act(otherwise) then
          otherwise()
        end
      end, { buffer = bufnr, desc = "dgemma: " .. descriptions[name] })
    end
  end
end

---@param bufnr integer
function M.detach(bufnr)
  local before = replaced[bufnr]
  replaced[bufnr] = nil
  if before == nil or not vim.api.nvim_buf_is_valid(bufnr) then
    return
  end
  for _, mapping in ipairs(vim.api.nvim_buf_get_keymap(bufnr, "i")) do
    if vim.startswith(mapping.desc or "", "dgemma: ") then
      vim.keymap.del("i", mapping.lhs, { buffer = bufnr })
    end
  end
  for _, mapping in pairs(before) do
    vim.fn.mapset("i", false, mapping)
  end
end

return M
