-- What happens to a buffer when the server attaches to it, however it was started.

local M = {}

function M.register()
  local group = vim.api.nvim_create_augroup("dgemma.attach", { clear = true })
  local function on(event, act)
    vim.api.nvim_create_autocmd(event, {
      group = group,
      callback = function(args)
        local client = vim.lsp.get_client_by_id(args.data.client_id)
        if client and client.name == require("dgemma.server").name then
          act(args.buf, client)
        end
      end,
    })
  end
  on("LspAttach", function(bufnr, client)
    require("dgemma.suggest").attach(bufnr, client)
    require("dgemma.keymaps").attach(bufnr)
  end)
  on("LspDetach", function(bufnr, client)
    require("dgemma.suggest").detach(bufnr, client)
    require("dgemma.keymaps").detach(bufnr)
    require("dgemma.canvas").clear(bufnr)
  end)
end

return M
