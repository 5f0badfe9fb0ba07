-- Enables the server for the file types of the configuration: installing the plugin is enough.
-- `vim.g.dgemma = false` leaves that to the user, by `setup` or `vim.lsp.enable("dgemma")`.

if vim.g.loaded_dgemma or vim.fn.has("nvim-0.10") == 0 then
  return
end
vim.g.loaded_dgemma = true

vim.api.nvim_create_user_command("Dgemma", function(opts)
  require("dgemma.command").run(opts)
end, {
  nargs = "+",
  range = true,
  bang = true,
  desc = "dgemma: fill code in the middle",
  complete = function(lead, line)
    return require("dgemma.command").complete(lead, line)
  end,
})

require("dgemma.highlight").setup()
require("dgemma.attach").register()

if vim.g.dgemma ~= false then
  require("dgemma").enable()
end
