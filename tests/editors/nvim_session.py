"""A real Neovim with the plugin, driven as a user drives it: by keys, with eyes on the screen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pynvim

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "editors/nvim"
TIMEOUT = 40.0  # seconds; the model is loaded meanwhile
# Wide enough that no message asks for Enter.
WIDTH, HEIGHT = 180, 24


class Nvim:
    """One Neovim.

    Args:
        binary: of Neovim.
        folder: for its files; its configuration is all there is.
        server: the server's command.
        options: for `setup()`, beside it.
    """

    def __init__(
        self, binary: Path, folder: Path, server: Sequence[str], options: dict[str, Any]
    ) -> None:
        settings = json.dumps({"cmd": list(server), **options})
        init = folder / "init.lua"
        init.write_text(
            f"vim.opt.runtimepath:prepend({str(PLUGIN)!r})\n"
            f"require('dgemma').setup(vim.json.decode([==[{settings}]==]))\n"
        )
        command = [str(binary), "--embed", "--clean", "-u", str(init), "-n"]
        self.api = pynvim.attach("child", argv=command)
        self.api.ui_attach(WIDTH, HEIGHT, rgb=True)

    def lua(self, code: str, *arguments: Any) -> Any:
        return self.api.exec_lua(code, *arguments)

    def keys(self, keys: str) -> None:
        self.api.input(keys)

    def text(self) -> str:
        return "\n".join(self.api.current.buffer[:])

    def until(self, is_so: Callable[[], Any], what: str) -> Any:
        """What `is_so` says, as soon as that is something."""
        give_up = time.monotonic() + TIMEOUT
        while not (found := is_so()):
            assert time.monotonic() < give_up, f"{what}; messages: {self.messages()}"
            time.sleep(0.05)
        return found

    def open(self, path: Path) -> None:
        """Edit a file and wait for the server."""
        self.api.command(f"edit {path}")
        attached = "return #vim.lsp.get_clients({ name = 'dgemma', bufnr = 0 })"
        self.until(lambda: self.lua(attached), "the server does not run")

    def ghost(self) -> str:
        """The suggestion on the screen, if any."""
        marks = """
            local found = {}
            for _, name in ipairs({ "nvim.lsp.inline_completion", "dgemma.ghost" }) do
              local namespace = vim.api.nvim_create_namespace(name)
              local all = vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })
              for _, mark in ipairs(all) do
                local lines = { mark[4].virt_text or {} }
                vim.list_extend(lines, mark[4].virt_lines or {})
                for _, line in ipairs(lines) do
                  local text = ""
                  for _, chunk in ipairs(line) do
                    text = text .. chunk[1]
                  end
                  table.insert(found, text)
                end
              end
            end
            return table.concat(found, "\\n")
        """
        text: str = self.lua(marks)
        return text

    def messages(self) -> str:
        text: str = self.lua("return vim.fn.execute('messages')")
        return text

    def close(self) -> None:
        try:
            self.api.async_call(lambda: self.api.command("qall!"))
            self.api.command("qall!")
        except Exception:
            pass  # it hung up, as it was told
        self.api.close()
