"""A real Neovim in a terminal, with the plugin installed as a user installs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .servers import ROOT, environment
from .terminal import Terminal, eventually

PLUGIN = ROOT / "editors/nvim"

_CALL_SECONDS = 40.0


class Neovim:
    """One Neovim with one file open.

    Args:
        options: what the user would write as `vim.g.dgemma`, as Lua.
        before: the rest of the user's init.lua.
    """

    def __init__(
        self,
        program: Path,
        home: Path,
        text: str,
        *,
        options: str = "{}",
        before: str = "",
        environ: Mapping[str, str] | None = None,
        name: str = "sample.py",
    ) -> None:
        packages = home / "data/nvim/site/pack/plugins/start"
        packages.mkdir(parents=True)
        shutil.copytree(PLUGIN, packages / "dgemma")
        (home / "config/nvim").mkdir(parents=True)
        init = f"vim.g.dgemma = {options}\nvim.o.swapfile = false\nvim.o.shada = ''\n{before}\n"
        (home / "config/nvim/init.lua").write_text(init, encoding="utf-8")
        folder = home / "project"
        folder.mkdir()
        self.file = folder / name
        self.file.write_text(text, encoding="utf-8")
        self._program = program
        self._socket = home / "socket"
        self._environment = environment(home)
        self.terminal = Terminal(
            [program, "--listen", self._socket, self.file],
            {**self._environment, **(environ or {})},
            folder,
        )
        eventually(self._socket.exists)

    def lua(self, code: str, *arguments: object) -> Any:
        """The value of a chunk of Lua with these arguments, as JSON can say it."""
        chunk = json.dumps({"code": code, "arguments": arguments}).replace("'", "''")
        call = (
            "luaeval('(function(p) local v = assert(loadstring(p.code))(unpack(p.arguments))"
            " if v == nil then v = vim.NIL end return vim.json.encode(v) end)"
            f"(vim.json.decode(_A))', '{chunk}')"
        )
        command: list[str | Path] = [self._program, "--server", self._socket, "--remote-expr", call]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=_CALL_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"Neovim does not answer:\n{self.terminal.text()}") from error
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or done.stderr)

    def _run(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=_CALL_SECONDS
        )

    def command(self, command: str) -> None:
        self.lua("vim.cmd(...)", command)

    def wait_for_server(self) -> None:
        eventually(
            lambda: self.lua(
                "local c = vim.lsp.get_clients({ name = 'dgemma', bufnr = 0 })[1]"
                " return c ~= nil and c.initialized == true"
            )
        )

    def type(self, keys: str, *, delay: float = 0.0) -> None:
        self.terminal.type(keys, delay=delay)

    def buffer(self) -> str:
        lines: list[str] = self.lua("return vim.api.nvim_buf_get_lines(0, 0, -1, false)")
        return "\n".join(lines) + "\n"

    def ghost(self) -> str:
        """The text of the suggestion on the screen, whoever shows it; "" for none."""
        text: str = self.lua(
            """
            local spaces = vim.api.nvim_get_namespaces()
            for _, name in ipairs({ "nvim.lsp.inline_completion", "dgemma.ghost" }) do
              local space = spaces[name]
              local marks = space
                  and vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true }) or {}
              if marks[1] then
                local lines = { marks[1][4].virt_text }
                vim.list_extend(lines, marks[1][4].virt_lines or {})
                return table.concat(vim.tbl_map(function(line)
                  return table.concat(vim.tbl_map(function(chunk) return chunk[1] end, line))
                end, lines), "\\n")
              end
            end
            return ""
            """
        )
        return text

    def see_ghost(self, wanted: str | None = None, seconds: float = 40.0) -> str:
        """Wait for a suggestion, of this text if one is given."""
        if wanted is None:
            return eventually(self.ghost, seconds)
        end = time.monotonic() + seconds
        while (seen := self.ghost()) != wanted:
            assert time.monotonic() < end, f"expected the ghost {wanted!r}, got {seen!r}"
            time.sleep(0.02)
        return seen

    def ask_server(self, method: str) -> Any:
        """A request of the test's own, see tests/lsp/fake_server.py."""
        answer = self.lua(
            """
            local client = vim.lsp.get_clients({ name = "dgemma", bufnr = 0 })[1]
            local params = { uri = vim.uri_from_bufnr(0) }
            local ask = vim.fn.has("nvim-0.11") == 1
                and function(...) return client:request_sync(...) end or client.request_sync
            return ask(..., params, 5000, 0)
            """,
            method,
        )
        return answer["result"]

    def close(self) -> None:
        self.terminal.close()
