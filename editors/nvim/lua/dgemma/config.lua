-- The plugin's options: defaults, then `vim.g.dgemma`, then `setup`.
-- The server's own settings are the table `settings`, handed on as it is.

---@class dgemma.Keys Insert-mode keys; false for none.
---@field accept string|false?
---@field accept_word string|false?
---@field accept_line string|false?
---@field next string|false? the next alternative; asks for alternatives if there are none
---@field previous string|false?
---@field dismiss string|false?

---@class dgemma.Options
---@field cmd string[]? how to start the server; found by itself if nil
---@field filetypes string[]?
---@field root_markers string[]?
---@field settings table? of the server, see `:help dgemma-settings`
---@field inline "auto"|"native"|"extmarks"|false? who shows suggestions
---@field debounce integer? milliseconds after a keystroke; for "extmarks", Neovim has its own
---@field canvas boolean? show drafts as they denoise
---@field keys dgemma.Keys|false?

local M = {}

---@type dgemma.Options
M.defaults = {
  cmd = nil,
  -- Those that the server knows the syntax of; while typing it is quiet where its model is no good.
  filetypes = {
    "python",
    "javascript",
    "javascriptreact",
    "typescript",
    "typescriptreact",
    "go",
    "rust",
    "c",
    "cpp",
    "java",
    "ruby",
    "lua",
    "sh",
    "bash",
    "json",
    "yaml",
    "toml",
    "html",
    "css",
    "markdown",
  },
  root_markers = { "pyproject.toml", "setup.py", "setup.cfg", ".git" },
  settings = {},
  inline = "auto",
  debounce = 100,
  canvas = false,
  keys = {
    accept = "<Tab>",
    accept_word = "<M-w>",
    accept_line = "<M-l>",
    next = "<M-]>",
    previous = "<M-[>",
    dismiss = "<C-]>",
  },
}

---@type dgemma.Options?
local from_setup = nil

---@param options dgemma.Options?
function M.set(options)
  vim.validate({ options = { options, "table", true } })
  for name in pairs(options or {}) do
    if M.defaults[name] == nil and name ~= "cmd" then
      local known = vim.tbl_keys(M.defaults)
      table.sort(known)
      vim.notify(
        ("dgemma: no option %q; there are cmd, %s"):format(name, table.concat(known, ", ")),
        vim.log.levels.WARN
      )
    end
  end
  from_setup = options
end

---@return dgemma.Options
function M.get()
  local globals = type(vim.g.dgemma) == "table" and vim.g.dgemma or {}
  return vim.tbl_deep_extend("force", M.defaults, globals, from_setup or {})
end

return M
