"""Neovim, as its users meet it: the plugin is installed, a file is opened, keys are typed.

With the scripted server where the text must be exact, and with the real one and the shipped model.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyte", reason="there is no pyte (pip install 'dgemma-lsp[e2e]')")

from dgemma_engine.shared.client import running_status

from .conftest import StartNeovim
from .neovim import Neovim
from .picture import draw
from .servers import REAL, ROOT, SCRIPTED, put_on_path, scripted
from .terminal import eventually

pytestmark = pytest.mark.e2e

CODE = "def total(values):\n    \n"

# A hole that the shipped model fills, at the end of line 4.
READER = (
    "class Reader:\n    def __init__(self, path, encoding):\n        self.path = path\n"
    "        self.encoding = \n"
)

LOADER = """import json


def load(path):
    with open(path) as file:
        return


def save(path, data):
    with open(path, "w") as file:
        json.dump(data, file)
"""

LOOKS = "vim.o.laststatus = 2 vim.o.showmode = true vim.o.ruler = false"
LOOKS += """ vim.o.statusline = "%f %m%=%{v:lua.require'dgemma'.statusline()} " """


def lua_list(words: list[str]) -> str:
    return "{" + ", ".join("[==[" + word + "]==]" for word in words) + "}"


def options(command: list[str], more: str = "") -> str:
    return f"{{ cmd = {lua_list(command)}, {more} }}"


def open_scripted(start: StartNeovim, answer: str, text: str = CODE, **keywords: object) -> Neovim:
    """A Neovim whose server always fills in the same, with the cursor at the end of line 2."""
    more = str(keywords.pop("more", ""))
    passes = keywords.pop("server", {})
    assert isinstance(passes, dict)
    neovim = start(text, options=options(scripted(answer, **passes), more), **keywords)
    neovim.wait_for_server()
    neovim.type("jA")
    return neovim


def test_ghost_text_appears_after_typing_and_tab_accepts_it(neovim: StartNeovim) -> None:
    """The main job, in both Neovims: type, see, press Tab."""
    editor = open_scripted(neovim, "return sum(values)")
    editor.see_ghost("return sum(values)")
    eventually(lambda: "    return sum(values)" in editor.terminal.text())
    editor.type("\t")
    eventually(lambda: editor.buffer() == "def total(values):\n    return sum(values)\n")
    editor.type("  # done")
    eventually(lambda: editor.buffer().endswith("return sum(values)  # done\n"))
    editor.type("\x1bu")
    eventually(lambda: editor.buffer() == CODE)


def test_the_rest_of_a_suggestion_that_is_typed_along(neovim: StartNeovim) -> None:
    """Tab right after typing the suggestion's beginning does not write it twice."""
    editor = open_scripted(neovim, "return sum(values)")
    editor.see_ghost("return sum(values)")
    editor.type("ret\t")
    eventually(lambda: editor.buffer() == "def total(values):\n    return sum(values)\n")


def test_tab_is_tab_where_nothing_is_suggested(neovim: StartNeovim) -> None:
    """Without a mapping of the user's it indents."""
    editor = open_scripted(neovim, "", before="vim.o.expandtab = true vim.o.shiftwidth = 4")
    editor.type("x\ty")
    eventually(lambda: "    x" in editor.buffer() and editor.buffer().rstrip().endswith("y"))
    assert "x   y" in editor.buffer().expandtabs(4)


def test_the_users_tab_mapping_is_kept(neovim: StartNeovim) -> None:
    """A mapping made before or after the plugin's works as before, whatever its kind."""
    for mapping in (
        'vim.keymap.set("i", "<Tab>", "mine")',
        'vim.keymap.set("i", "<Tab>", function() return "mine" end, { expr = true })',
        'vim.keymap.set("i", "<Tab>", function() vim.api.nvim_paste("mine", false, -1) end)',
        'vim.cmd([[inoremap <expr> <Tab> "mi" .. "ne"]])',
        "vim.cmd([[imap <Tab> <Plug>(mine)]]) vim.cmd([[inoremap <Plug>(mine) mine]])",
        'vim.api.nvim_create_autocmd("FileType", { callback = function()'
        ' vim.keymap.set("i", "<Tab>", "mine", { buffer = true }) end })',
        'vim.defer_fn(function() vim.keymap.set("i", "<Tab>", "mine") end, 500)',
    ):
        editor = open_scripted(neovim, "", before=mapping)
        editor.lua("vim.wait(600)")
        editor.type("x\ty")
        eventually(lambda editor=editor: "xminey" in editor.buffer())


def test_a_word_and_a_line_are_accepted_alone(neovim: StartNeovim) -> None:
    """Partial acceptance, and the rest is offered again."""
    editor = open_scripted(neovim, "for value in values:\n        print(value)")
    editor.see_ghost("for value in values:\n        print(value)")
    editor.type("\x1bw")
    eventually(lambda: editor.buffer() == "def total(values):\n    for\n")
    editor.see_ghost(" value in values:\n        print(value)")
    editor.type("\x1bl")
    eventually(lambda: editor.buffer() == "def total(values):\n    for value in values:\n")
    editor.see_ghost("\n        print(value)")
    editor.type("\t")
    wanted = "def total(values):\n    for value in values:\n        print(value)\n"
    eventually(lambda: editor.buffer() == wanted)


def test_typing_on_withdraws_what_was_asked(neovim: StartNeovim) -> None:
    """While a fill runs, keystrokes cancel it; the last one is answered."""
    slow = {"num_passes": 10, "pass_seconds": 0.1}
    editor = open_scripted(neovim, "return sum(values)", server=slow)
    editor.type("x = 1", delay=0.4)
    eventually(lambda: editor.ask_server("test/state")["num_cancelled"] > 0)
    editor.see_ghost("return sum(values)")
    state = editor.ask_server("test/state")
    assert state["text"] == "def total(values):\n    x = 1\n"
    assert state["num_futures"] <= 1  # this request itself


def test_a_code_action_is_applied(neovim: StartNeovim) -> None:
    """Code actions need nothing but Neovim's own client."""
    editor = open_scripted(neovim, "return sum(values)")
    editor.type("\x1b")
    editor.lua(
        "vim.lsp.buf.code_action({ apply = true,"
        " filter = function(action) return action.title == 'Fill here' end })"
    )
    eventually(lambda: editor.buffer() == "def total(values):\n    return sum(values)\n")


def test_every_subcommand_does_its_work(neovim: StartNeovim) -> None:
    """`:Dgemma` fills, rewrites, explains, shows the context, and switches off."""
    editor = open_scripted(neovim, "return sum(values)")
    editor.type("\x1b:Dgemma fill\r")
    eventually(lambda: editor.buffer() == "def total(values):\n    return sum(values)\n")
    editor.type("u:Dgemma context\r")
    eventually(lambda: "<hole>" in editor.buffer())
    editor.type(":q\r")
    editor.type(":Dgemma status\r")
    editor.terminal.see("model fake on none")
    editor.type("\r:Dgemma explain\r")
    eventually(lambda: "LSP[dgemma]" in editor.lua("return vim.fn.execute('messages')"))
    editor.type("\r:Dgemma toggle\r")
    editor.terminal.see("suggestions are off")
    editor.type("\rA")
    eventually(lambda: editor.ask_server("test/state")["num_requests"] > 0)
    assert editor.lua("return require('dgemma').statusline()") == "dgemma: off"


def test_a_selection_is_rewritten(neovim: StartNeovim) -> None:
    """In visual mode the command takes the selected characters, not their lines."""
    editor = open_scripted(neovim, "len(values)", "def total(values):\n    return 0 + 1\n")
    editor.type("\x1bF0v$h:Dgemma rewrite\r")
    eventually(lambda: editor.buffer() == "def total(values):\n    return len(values)\n")


def test_the_draft_is_seen_forming(neovim: StartNeovim) -> None:
    """With the option, after every pass; nothing of it is left when the fill has come."""
    slow = {"num_passes": 30, "pass_seconds": 0.05}
    editor = open_scripted(neovim, "return sum(values)", server=slow, more="canvas = true")
    editor.type("\x1b:Dgemma fill\r")
    look = """
        local space = vim.api.nvim_get_namespaces()["dgemma.canvas"]
        local marks = space and vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true })
        return marks and marks[1] and marks[1][4].virt_text
    """
    assert eventually(lambda: editor.lua(look)) == [["return sum(values)", "DgemmaCanvas4"]]
    editor.terminal.see("    return sum(values)")
    eventually(lambda: editor.buffer() == "def total(values):\n    return sum(values)\n")
    eventually(lambda: not editor.lua(look))


def test_alternatives_are_asked_for(neovim: StartNeovim) -> None:
    """Alt+] asks where nothing comes by itself, and Tab accepts."""
    editor = open_scripted(neovim, "return 1", more='settings = { trigger = "invoked" }')
    editor.type("\x1b]")
    editor.see_ghost("return 1")
    editor.type("\t")
    eventually(lambda: editor.buffer() == "def total(values):\n    return 1\n")


def test_what_neovim_has_is_enough(neovim_12: StartNeovim, tmp_path: Path) -> None:
    """The snippet of `:help dgemma-lsp`, while the plugin stays out of it."""
    programs = put_on_path(tmp_path, SCRIPTED)
    help_text = (ROOT / "editors/nvim/doc/dgemma.txt").read_text(encoding="utf-8")
    snippet = help_text.split("*dgemma-lsp*")[1].split(">lua\n")[1].split("\n<\n")[0]
    environ = {"PATH": f"{programs}:{os.environ['PATH']}"}
    editor = neovim_12(CODE, options="false", before=snippet, environ=environ)
    editor.wait_for_server()
    editor.type("jA")
    editor.see_ghost("sum(values)")
    editor.type("\t")
    eventually(lambda: editor.buffer() == "def total(values):\n    sum(values)\n")


def test_a_missing_server_is_told_once_with_the_remedy(neovim: StartNeovim) -> None:
    """Opening two files gives one message, and it holds the command to run."""
    bare = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": ""}
    editor = neovim(CODE, environ=bare)
    eventually(lambda: "pipx install" in editor.lua("return vim.fn.execute('messages')"))
    editor.command("silent edit other.py")
    assert editor.lua("return vim.fn.execute('messages')").count("pipx install") == 1


def test_the_server_of_the_active_environment_is_found(neovim: StartNeovim, tmp_path: Path) -> None:
    """$VIRTUAL_ENV is enough; PATH need not hold the command."""
    script = tmp_path / "venv/bin/dgemma-lsp"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m dgemma_lsp "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    environ = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path / "venv")}
    editor = neovim(CODE, environ=environ)
    editor.wait_for_server()
    assert editor.lua("return require('dgemma.server').find()")[0] == str(script)


def test_the_health_check_says_that_all_is_well(neovim: StartNeovim, tmp_path: Path) -> None:
    """`:checkhealth dgemma` names versions, finds the server, and has it fill a hole."""
    script = tmp_path / "dgemma-lsp"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m dgemma_lsp "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    editor = neovim(CODE, options=options([str(script), "serve"]))
    editor.wait_for_server()
    editor.command("checkhealth dgemma")
    report = eventually(lambda: editor.buffer() if "log:" in editor.buffer() else "", 60)
    assert "ERROR" not in report
    for wanted in ("Neovim 0.1", "dgemma-lsp, version", "everything works", "the server runs in"):
        assert wanted in report


def test_the_shipped_model_suggests_and_fills(neovim: StartNeovim) -> None:
    """The real server: ghost text after typing, accepted; a code action, applied."""
    show_all = "settings = { minConfidence = 0 }"
    editor = neovim(READER, options=options(REAL, show_all))
    editor.wait_for_server()
    editor.type("4G$a")
    ghost = editor.see_ghost(seconds=60)
    editor.type("\t")
    eventually(lambda: editor.buffer() == READER.rstrip("\n") + ghost + "\n")
    editor.type("\x1bu")
    eventually(lambda: editor.buffer() == READER)
    editor.type(":Dgemma fill\r")
    eventually(lambda: editor.buffer() != READER)


def test_two_editors_share_one_engine(neovim: StartNeovim, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process holds the model for both; one editor is killed, the other is filled as before."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path may not be long
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        shared = options(REAL, "settings = { engine = 'shared' }")
        one, two = (
            neovim(READER, options=shared, environ={"XDG_RUNTIME_DIR": folder}) for _ in range(2)
        )
        try:
            for editor in (one, two):
                editor.wait_for_server()
                editor.type("4G$:Dgemma fill\r")
                eventually(lambda editor=editor: editor.buffer() != READER, 60)  # type: ignore[misc]
            assert one.buffer() == two.buffer()
            assert len(shared_clients()) == 2
            kill(one)
            eventually(lambda: len(shared_clients()) == 1)
            two.command("undo")
            assert two.buffer() == READER
            two.type("4G$:Dgemma fill\r")
            eventually(lambda: two.buffer() != READER)
        finally:
            kill(one, two)  # or they would start another engine
            eventually(lambda: shared_clients() == [])
            if (status := running_status()) is not None:
                os.kill(status["pid"], signal.SIGTERM)


def kill(*editors: Neovim) -> None:
    for editor in editors:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(editor.terminal.process.pid, signal.SIGKILL)


def shared_clients() -> list[dict[str, Any]]:
    """Who uses the shared engine, beside whoever asks."""
    status = running_status() or {"clients": []}
    return [client for client in status["clients"] if client["pid"] != os.getpid()]


def test_a_picture_of_the_shipped_model(neovim_12: StartNeovim, shots: Path) -> None:
    """What editors/README.md shows: ghost text before it is accepted, by default settings."""
    editor = neovim_12(LOADER, options=options(REAL), before=LOOKS, name="loader.py")
    editor.wait_for_server()
    loaded = "local _, s = next(require('dgemma.status').by_client) return s and s.model ~= vim.NIL"
    eventually(lambda: editor.lua(loaded))
    editor.type("6GA json.")
    ghost = editor.see_ghost(seconds=60)
    editor.terminal.see(f"return json.{ghost}")
    editor.terminal.see(" ms")
    draw(editor.terminal, shots / "nvim.png")
    assert (shots / "nvim.png").stat().st_size > 1000
