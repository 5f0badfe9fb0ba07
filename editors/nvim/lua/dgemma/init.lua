--- Fill code in the middle: starts the language server and shows what it says.
---
--- Everything but the status and the live canvas is standard LSP. `server.lua` finds the server,
--- `accept.lua` and `ghost.lua` are about suggestions, `commands.lua` about `:Dgemma`.

local M = {}

---@class dgemma.Keys
---@field accept string|false takes the whole suggestion
---@field accept_word string|false takes its next word
---@field accept_line string|false takes its next line

---@class dgemma.Options
---@field cmd? string[] the server; by default it is looked for
---@field filetypes string[] where it is started
---@field settings table the server's settings, see editors/SETTINGS.md
---@field keys dgemma.Keys in insert mode
---@field canvas boolean show the draft while it forms, uncertain tokens fainter
---@field debounce integer milliseconds, before Neovim 0.12, which has its own

---@type dgemma.Options
M.options = {
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
  settings = {},
  keys = { accept = "<Tab>", accept_word = "<M-w>", accept_line = "<M-l>" },
  canvas = false,
  debounce = 75,
}

local root_markers = { ".git", "pyproject.toml" }
local is_enabled = false

--- Change the defaults. Call it before a document opens, or `:Dgemma restart` afterwards.
---@param options? dgemma.Options|table only what differs
function M.setup(options)
  M.options = vim.tbl_deep_extend("force", M.options, options or {})
  if is_enabled and vim.lsp.config then
    vim.lsp.config("dgemma", M.client_config())
  end
end

--- Whether this Neovim shows inline completions by itself.
---@return boolean
function M.has_native_completion()
  return vim.lsp.inline_completion ~= nil
end

--- The client's configuration; the same for `vim.lsp.config` and `vim.lsp.start`.
---@return table
function M.client_config()
  local capabilities = vim.tbl_deep_extend(
    "force",
    vim.lsp.protocol.make_client_capabilities(),
    {
      textDocument = { inlineCompletion = { dynamicRegistration = false } },
      workspace = { executeCommand = { dynamicRegistration = false } },
      experimental = { dgemma = { status = true, canvas = M.options.canvas } },
    }
  )
  return {
    name = "dgemma",
    cmd = require("dgemma.server").command(M.options) or { "dgemma-lsp", "serve" },
    filetypes = M.options.filetypes,
    root_markers = root_markers,
    capabilities = capabilities,
    settings = { dgemma = M.options.settings },
    init_options = M.options.settings,
    handlers = {
      ["dgemma/status"] = require("dgemma.status").on_status,
      ["dgemma/canvas"] = require("dgemma.canvas").on_canvas,
    },
  }
end

--- Start the server for documents that open from now on, and for those that are open.
function M.enable()
  if is_enabled then
    return
  end
  if not require("dgemma.server").command(M.options) then
    vim.notify(require("dgemma.server").missing, vim.log.levels.WARN)
    return
  end
  is_enabled = true
  local group = vim.api.nvim_create_augroup("dgemma", {})
  vim.api.nvim_create_autocmd("LspAttach", {
    group = group,
    callback = function(event)
      local client = vim.lsp.get_client_by_id(event.data.client_id)
      if client and client.name == "dgemma" then
        M.on_attach(client, event.buf)
      end
    end,
  })
  if vim.lsp.enable then
    vim.lsp.enable("dgemma")
    return
  end
  local function start(buffer)
    if vim.bo[buffer].buftype == "" and vim.tbl_contains(M.options.filetypes, vim.bo[buffer].filetype) then
      local config = M.client_config()
      config.root_dir = vim.fs.root(buffer, root_markers)
      vim.lsp.start(config, { bufnr = buffer })
    end
  end
  vim.api.nvim_create_autocmd("FileType", {
    group = group,
    callback = function(event)
      start(event.buf)
    end,
  })
  for _, buffer in ipairs(vim.api.nvim_list_bufs()) do
    if vim.api.nvim_buf_is_loaded(buffer) then
      start(buffer)
    end
  end
end

---@param client vim.lsp.Client
---@param buffer integer
function M.on_attach(client, buffer)
  if M.has_native_completion() then
    vim.lsp.inline_completion.enable(true, { bufnr = buffer })
  else
    require("dgemma.ghost").attach(client.id, buffer, M.options.debounce)
  end
  require("dgemma.accept").map(buffer, M.options.keys)
end

--- For a statusline: what the server is doing, and how long the last suggestion took.
---@return string empty where no server runs
function M.statusline()
  return require("dgemma.status").line()
end

return M
