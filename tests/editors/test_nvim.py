"""Neovim, the real one: 0.12 with its own inline completion, 0.10 with the plugin's ghost text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .get_editors import NotHere, get

pynvim = pytest.importorskip("pynvim", reason="pip install -e '.[e2e]'")

from .nvim_session import ROOT, Nvim  # noqa: E402  (needs pynvim)

pytestmark = pytest.mark.e2e

SCRIPTED = str(ROOT / "tests/lsp/scripted_server.py")
FAKE = str(ROOT / "tests/lsp/fake_server.py")
TEXT = "def area(width, height):\n    return 0\n\n\nprint(area(2, 3))\n"
VERSIONS = {"0.12": "neovim-0.12", "0.10": "neovim-0.10"}

StartNvim = Callable[..., Nvim]


def find(version: str) -> Path:
    """The Neovim on PATH if it is that version, else one that is fetched."""
    on_path = shutil.which("nvim")
    if on_path is not None:
        told = subprocess.run([on_path, "--version"], capture_output=True, text=True, check=False)
        if told.stdout.startswith(f"NVIM v{version}."):
            return Path(on_path)
    try:
        return get(VERSIONS[version])
    except NotHere as error:
        pytest.skip(str(error))


@pytest.fixture(params=VERSIONS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartNvim]:
    binary = find(request.param)
    started: list[Nvim] = []

    def start_one(*server: str, **options: Any) -> Nvim:
        nvim = Nvim(binary, tmp_path, [sys.executable, *server], options)
        started.append(nvim)
        path = tmp_path / "sample.py"
        path.write_text(TEXT)
        nvim.open(path)
        return nvim

    yield start_one
    for nvim in started:
        nvim.close()


def scripted(**options: Any) -> tuple[str, str]:
    return SCRIPTED, json.dumps(options)


def type_return(nvim: Nvim) -> None:
    """Replace the 0 of `return 0` by nothing, and stay in insert mode."""
    nvim.keys("2Gf0C")


def test_ghost_text_is_accepted_with_tab(start: StartNvim) -> None:
    """It appears while typing; a key that goes along keeps it; Tab puts it in, and indents else."""
    nvim = start(*scripted(answer="width * height"))
    type_return(nvim)
    nvim.until(lambda: nvim.ghost() == "width * height", "no ghost text")
    nvim.keys("wid")
    nvim.until(lambda: nvim.ghost() == "th * height", "the suggestion does not follow")
    nvim.keys("<Tab>")
    nvim.until(lambda: "    return width * height\n" in nvim.text(), "Tab does not accept")
    nvim.until(lambda: not nvim.ghost(), "it is still shown")
    nvim.keys("<Esc>Go<Tab>x")
    nvim.until(lambda: nvim.text().split("\n")[-1] in ("\tx", "    x"), "Tab does not indent")


def test_a_word_of_it_is_accepted(start: StartNvim) -> None:
    """And the rest is offered again, then a line of it."""
    nvim = start(*scripted(answer="width * height"))
    type_return(nvim)
    nvim.until(lambda: nvim.ghost() == "width * height", "no ghost text")
    nvim.keys("<M-w>")
    nvim.until(lambda: "return width\n" in nvim.text(), "no word")
    nvim.until(lambda: nvim.ghost() == " * height", "the rest is not offered")
    nvim.keys("<M-l>")
    nvim.until(lambda: "return width * height\n" in nvim.text(), "no line")


def test_typing_on_takes_it_back(start: StartNvim) -> None:
    """What is typed against it removes it, and a slow answer to an older text is not shown."""
    nvim = start(*scripted(answer="width", num_passes=20, pass_seconds=0.05))
    type_return(nvim)
    nvim.keys("x = ")
    nvim.until(lambda: nvim.ghost() == "width", "no ghost text")
    nvim.keys("7")
    nvim.until(lambda: not nvim.ghost().startswith("width"), "it is still shown")
    nvim.keys("<Esc>")
    nvim.until(lambda: not nvim.ghost(), "it is shown outside insert mode")


def test_a_code_action_is_applied(start: StartNvim) -> None:
    """Chosen from the menu, by the editor's own command."""
    nvim = start(*scripted(answer="Of a rectangle."))
    nvim.lua(
        "vim.lsp.buf.code_action({ apply = true, filter = function(action) "
        "return action.title == 'Write the docstring' end })"
    )
    nvim.until(lambda: '    """Of a rectangle."""' in nvim.text(), "no docstring")


def test_commands(start: StartNvim) -> None:
    """`:Dgemma` fills lines, explains, switches off, and shows what the model would see."""
    nvim = start(*scripted(answer="return 7"))
    nvim.api.command("2,2Dgemma fill")
    nvim.until(lambda: "\nreturn 7\n" in nvim.text(), "the line is not replaced")
    nvim.api.command("Dgemma explain")
    nvim.until(lambda: "shown: filled in" in nvim.messages(), "no explanation")
    nvim.api.command("Dgemma toggle")
    nvim.until(lambda: "dgemma: off" in nvim.messages(), "not off")
    nvim.api.command("Dgemma fill")
    nvim.until(lambda: "nothing was filled in: it is switched off" in nvim.messages(), "silent")
    nvim.api.command("Dgemma toggle")
    nvim.until(lambda: "dgemma: on" in nvim.messages(), "not on")
    nvim.api.command("Dgemma nonsense")
    nvim.until(lambda: "no such command: nonsense" in nvim.messages(), "silent")
    nvim.api.command("Dgemma context")
    nvim.until(lambda: "<hole>" in nvim.text(), "no context")


def test_the_draft_is_seen_forming(start: StartNvim) -> None:
    """With the option, every pass; nothing of it is left when the fill has come."""
    nvim = start(*scripted(answer="return 7", num_passes=30, pass_seconds=0.05), canvas=True)
    marks = """
        local namespace = vim.api.nvim_create_namespace("dgemma.canvas")
        local all = vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })
        return all[1] and all[1][4].virt_text[1] or {}
    """
    nvim.api.command("2,2Dgemma fill")
    draft = nvim.until(lambda: nvim.lua(marks), "no draft")
    assert draft == ["return 7", "DgemmaSure"]
    nvim.until(lambda: "\nreturn 7\n" in nvim.text(), "the fill does not come")
    assert nvim.lua(marks) == []


def test_health_and_statusline(start: StartNvim) -> None:
    """The server, where it was found, and what it is doing."""
    nvim = start(*scripted(answer="x"))
    nvim.until(lambda: nvim.lua("return require('dgemma').statusline()") == "dgemma ✓", "no status")
    nvim.api.command("checkhealth dgemma")
    report = nvim.text()
    assert "server: " in report
    assert "(by setup({ cmd }))" in report
    assert "running, for 1 buffer(s)" in report
    assert "ready: fake on none" in report
    assert "ERROR" not in report


def test_a_missing_server_is_said_once(tmp_path: Path) -> None:
    """With what to do; nothing else breaks."""
    nvim = Nvim(find("0.12"), tmp_path, ["/no/such/dgemma-lsp", "serve"], {})
    try:
        nvim.until(lambda: "no server found; :checkhealth" in nvim.messages(), "silent")
        nvim.api.command("edit a.py")
        nvim.api.command("checkhealth dgemma")
        assert "install it: pip install dgemma-lsp" in nvim.text()
    finally:
        nvim.close()


def test_the_real_server_with_the_shipped_model(start: StartNvim) -> None:
    """Something is suggested, and accepted."""
    nvim = start("-m", "dgemma_lsp", "serve", settings={"minConfidence": 0})
    type_return(nvim)
    ghost = nvim.until(nvim.ghost, "no suggestion")
    nvim.keys("<Tab>")
    nvim.until(lambda: f"return {ghost}" in nvim.text(), "Tab does not accept")


def test_a_picture_is_taken(tmp_path: Path) -> None:
    """In a terminal, as a user sees it; with DGEMMA_PICTURES set to a folder it is kept there."""
    pytest.importorskip("pyte", reason="pip install -e '.[e2e]'")
    from .terminal import Terminal

    path = tmp_path / "reader.py"
    path.write_text(
        "import json\n\n\ndef load(path):\n    with open(path) as file:\n        return 0\n\n\n"
        "def save(path, data):\n    with open(path, 'w') as file:\n        json.dump(data, file)\n"
    )
    command = json.dumps({"cmd": [sys.executable, "-m", "dgemma_lsp", "serve"]})
    init = tmp_path / "init.lua"
    init.write_text(
        f"vim.opt.runtimepath:prepend({str(ROOT / 'editors/nvim')!r})\n"
        f"require('dgemma').setup(vim.json.decode([==[{command}]==]))\n"
        "vim.o.laststatus, vim.o.ruler, vim.o.termguicolors = 2, false, true\n"
        "vim.o.statusline = \"%t %=%{v:lua.require'dgemma'.statusline()} \"\n"
    )
    arguments = [str(find("0.12")), "--clean", "-u", str(init), "-n", str(path)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    terminal = Terminal(arguments, environment, width=64, height=14)
    try:
        terminal.until(lambda screen: "dgemma ✓" in screen, "the server does not run")
        terminal.keys("6Gf0Cjson.")
        terminal.until(lambda screen: "return json.load" in screen, "no ghost text")
        terminal.until(lambda screen: " ms" in screen, "no latency in the statusline")
        folder = os.environ.get("DGEMMA_PICTURES")
        terminal.picture(Path(folder or tmp_path) / "nvim.svg", "Neovim 0.12")
    finally:
        terminal.close()
