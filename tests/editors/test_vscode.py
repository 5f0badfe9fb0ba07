"""The VS Code extension in a real VS Code, and its parts in Node.

Every test leaves its pictures in the folder that the variable DGEMMA_SHOTS names, or in pytest's
own for the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .vscode_window import CannotInstall, Editor, Installation, Window, editor, install

Seen = TypeVar("Seen")

ROOT = Path(__file__).parent.parent.parent
EXTENSION = ROOT / "editors/vscode"
SCRIPTED = str(Path(__file__).with_name("vscode_server.py"))

PROGRAM = str(Path(sys.executable).with_name("dgemma-lsp"))

# With a hole at the sign, in line 6 at column 16.
SHAPES = """class Square:
    def __init__(self, side):
        self.side = side

    def area(self):
        return ║

    def perimeter(self):
        return 4 * self.side
""".replace("║", "")

# With a hole at the sign, in line 4 at column 25.
READER = """class Reader:
    def __init__(self, path, encoding="utf-8"):
        self.path = path
        self.encoding = ║

    def read(self):
        with open(self.path, encoding=self.encoding) as file:
            return file.read()
""".replace("║", "")

# A Python, and no dgemma-lsp beside it.
BARE = {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin"}

# And no package index.
OFFLINE = BARE | {"PIP_NO_INDEX": "1"}

# Of the extension; its server has the same.
VERSION = json.loads((EXTENSION / "package.json").read_text(encoding="utf-8"))["version"]

# In a profile, the environment that the extension makes.
MANAGED = "User/globalStorage/dgemma-lsp.dgemma/server"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]  # the first installation takes minutes


@pytest.fixture(scope="session")
def extension() -> Path:
    """The extension's folder with what npm brings."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if not (EXTENSION / "node_modules/.package-lock.json").is_file():
        run = _npm("ci", "--no-audit", "--no-fund")
        if run.returncode:
            pytest.skip(f"npm could not install what the extension is built with: {run.stderr}")
    return EXTENSION


@pytest.fixture(scope="session")
def vsix(extension: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that a user installs."""
    file = tmp_path_factory.mktemp("vsix") / "dgemma.vsix"
    run = _npm("run", "package", "--", "--out", str(file))
    assert run.returncode == 0, run.stdout + run.stderr
    return file


@pytest.fixture(scope="session")
def installation() -> Installation:
    try:
        return install()
    except CannotInstall as error:
        pytest.skip(str(error))


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("DGEMMA_SHOTS") or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


Start = Callable[..., AbstractContextManager[Editor]]


@pytest.fixture
def start(installation: Installation, vsix: Path, tmp_path: Path) -> Start:
    """An editor with a new profile and these settings."""
    return partial(editor, installation, tmp_path / "profile", vsix)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def _npm(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["npm", *arguments],
        cwd=EXTENSION,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )


def _python_server(*arguments: str) -> dict[str, Any]:
    return {"dgemma.server.path": sys.executable, "dgemma.server.arguments": list(arguments)}


class Report:
    """What the scripted server was told."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def settings(self) -> dict[str, Any]:
        return _python_server(SCRIPTED, str(self.file))

    def all(self, kind: str) -> list[Any]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [entry[kind] for line in lines if kind in (entry := json.loads(line))]

    def wait(self, kind: str) -> None:
        _wait_until(lambda: bool(self.all(kind)))


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "report.jsonl")


def test_ghost_text_is_accepted_with_tab(
    start: Start, workspace: Path, shots: Path, report: Report
) -> None:
    """Open a Python file, type, see the suggestion in grey, accept it with Tab."""
    file = workspace / "area.py"
    file.write_text("def area(a, b):\n    ", encoding="utf-8")
    with start(report.settings()) as vscode, vscode.window() as window:
        window.open(workspace, file)
        assert window.status("scripted")
        window.press("Control+End")
        assert window.ghost_after("return ") == "a + b"
        window.shoot(shots / "ghost.png")
        window.press("Tab")
        window.wait("!document.querySelector('.ghost-text-decoration')")
        accepted = _saved(window, file)
        assert "42 ms" in window.status("42 ms")
        window.shoot(shots / "accepted.png")
    assert accepted == "def area(a, b):\n    return a + b"


def test_the_draft_is_seen_settling(
    start: Start, workspace: Path, shots: Path, report: Report
) -> None:
    """With the setting, every pass is drawn behind the cursor, the uncertain fainter."""
    file = workspace / "area.py"
    file.write_text("def area(a, b):\n    return ", encoding="utf-8")
    settings = report.settings() | {"dgemma.canvas": True}
    with start(settings) as vscode, vscode.window() as window:
        window.open(workspace, file)
        window.status("scripted")
        window.press("Control+End")
        window.watch_after_text()
        window.type(" ")
        seen: dict[str, list[tuple[str, str]]] = {}
        deadline = time.monotonic() + 60
        again = time.monotonic() + 6
        is_filled = "document.querySelectorAll('.ghost-text-decoration').length > 0"
        while time.monotonic() < deadline and not window.evaluate(is_filled):
            if not seen and time.monotonic() > again:
                window.press("Backspace")  # a key right after the start may get no suggestion
                window.type(" ")
                again += 6
            pieces = window.after_text()
            text = "".join(text for text, _ in pieces)
            if text and text not in seen:
                window.shoot(shots / f"canvas-{len(seen)}.png")
                seen[text] = pieces
        drafts = ["%zq lambda 0x", "a lambda self", "a + x", "a + b"]
        drawn = list(dict.fromkeys(window.watched()))
        # Two that reach a busy editor at once are drawn as one.
        assert drawn == [draft for draft in drafts if draft in drawn]
        assert len(drawn) > 2
        assert len({color for pieces in seen.values() for _, color in pieces}) > 1
        assert window.ghost_text() == "a + b"
        assert not window.after_text()
        window.shoot(shots / "canvas-done.png")
    assert report.all("experimental") == [{"status": True, "canvas": True}]


def test_parts_in_node(extension: Path) -> None:
    """Resolution order, settings, status, canvas: unit tests that need no editor."""
    run = _npm("test")
    assert run.returncode == 0, run.stdout + run.stderr


def test_status_and_toggle(start: Start, workspace: Path, shots: Path, report: Report) -> None:
    """The status bar says model, state and latency; its menu switches suggestions off."""
    file = workspace / "area.py"
    file.write_text("x = ", encoding="utf-8")
    with start(report.settings()) as vscode, vscode.window() as window:
        window.open(workspace, file)
        window.status("scripted")
        window.click(".statusbar-item[id*=dgemma]")
        window.wait(_listed("Switch suggestions off"))
        window.shoot(shots / "menu.png")
        window.press("Enter")
        assert window.status("off") == "scripted: off"
        window.shoot(shots / "off.png")
        window.command("dgemma: Switch Suggestions On or Off")
        item = "document.querySelector('.statusbar-item[id*=dgemma]').textContent"
        window.wait(f"!{item}.includes('off')")
        assert window.status("scripted") == "scripted"
    assert len(report.all("dgemma.toggle")) == 2


def test_commands_say_where(start: Start, workspace: Path, shots: Path, report: Report) -> None:
    """Each command of the palette reaches the server with document, place and version."""
    file = workspace / "area.py"
    file.write_text("def area(a, b):\n    ...\n", encoding="utf-8")
    with start(report.settings()) as vscode, vscode.window() as window:
        window.open(workspace, file)
        window.status("scripted")
        window.go_to(2, 5)
        window.press("Control+Alt+g")
        window.command("dgemma: Fill All Holes")
        window.command("dgemma: Implement the Body")
        report.wait("dgemma.implement")
        window.press("Shift+End", "Control+Alt+g")
        window.command("dgemma: Explain the Last Suggestion")
        window.command("dgemma: Show What the Model Sees")
        window.wait("document.body.textContent.includes('before<hole>what')")
        window.shoot(shots / "context.png")
    at = {"line": 1, "character": 4}
    here = {"uri": file.as_uri(), "range": {"start": at, "end": at}, "version": 1}
    selected = {**here, "range": {"start": at, "end": {"line": 1, "character": 7}}}
    everywhere = {"uri": file.as_uri(), "version": 1}
    assert [[here]] == report.all("dgemma.fill")
    assert [[everywhere]] == report.all("dgemma.fillAll")
    assert [[here]] == report.all("dgemma.implement")
    assert [[selected]] == report.all("dgemma.rewrite")
    assert [[{"uri": file.as_uri()}]] == report.all("dgemma.explainLast")
    assert len(report.all("dgemma.context")) == 1


def test_the_server_gets_what_the_user_set(start: Start, workspace: Path, report: Report) -> None:
    """No default and nothing of the extension's own is sent; a folder's settings go first."""
    (workspace / ".vscode").mkdir()
    (workspace / ".vscode/settings.json").write_text('{"dgemma.seed": 7}', encoding="utf-8")
    (workspace / "area.py").write_text("", encoding="utf-8")
    settings = report.settings() | {"dgemma.seed": 3, "dgemma.maxTokens": 16}
    with start(settings) as vscode, vscode.window() as window:
        window.open(workspace, workspace / "area.py")
        window.status("scripted")
    expected = {"seed": 7, "maxTokens": 16}
    assert [expected] == report.all("options")
    assert expected in report.all("configuration")


def test_the_real_server_with_the_shipped_model(start: Start, workspace: Path, shots: Path) -> None:
    """dgemma-lsp serve in the editor: a suggestion is accepted and undone, an action applied."""
    file = workspace / "reader.py"
    before = (
        "class Reader:\n"
        '    def __init__(self, path, encoding="utf-8"):\n'
        "        self.path = path\n"
        "        self.encoding = \n"
    )
    file.write_text(before, encoding="utf-8")
    # What the model is sure enough of to show unasked is not what this is about.
    settings = {"dgemma.server.path": PROGRAM, "dgemma.minConfidence": 0}
    with start(settings) as vscode, vscode.window() as window:
        window.open(workspace, file)
        vscode.wait_for_log("found by: setting")
        vscode.wait_for_log("engine ready")
        window.go_to(4, 25)
        window.press("Backspace")
        suggestion = window.ghost_after(" ")
        window.shoot(shots / "real-ghost.png")
        window.press("Tab")
        window.wait("!document.querySelector('.ghost-text-decoration')")
        accepted = before.replace("encoding = ", f"encoding = {suggestion}")
        assert _saved(window, file) == accepted

        window.press("Control+Z")
        assert _saved(window, file) == before
        window.code_actions("Fill here")
        window.shoot(shots / "real-action.png")
        window.press("Enter")
        _wait_until(lambda: _saved(window, file) != before)
        window.shoot(shots / "real-filled.png")
        filled = file.read_text(encoding="utf-8")
    assert re.fullmatch(re.escape(before).replace("encoding\\ =\\ ", "encoding = .+"), filled)


def test_the_real_model_is_seen_denoising(start: Start, workspace: Path, shots: Path) -> None:
    """With diffusion as decoder, the canvas of the shipped model is drawn pass by pass."""
    file, reader = workspace / "shapes.py", workspace / "reader.py"
    file.write_text(SHAPES, encoding="utf-8")
    reader.write_text(READER, encoding="utf-8")
    settings = {
        "dgemma.server.path": PROGRAM,
        "dgemma.canvas": True,
        "dgemma.decoder": "diffusion",
        "dgemma.minConfidence": 0,
    }
    with start(settings) as vscode, vscode.window() as window:
        window.open(workspace, file)
        vscode.wait_for_log("engine ready")
        window.status("fill-4m")
        window.watch_after_text()
        window.go_to(6, 16)
        window.press("Control+Alt+g")
        _wait_until(lambda: _saved(window, file) != SHAPES, 30)
        _wait_until(lambda: window.after_text() == [])
        window.shoot(shots / "denoised.png")
        window.open_file(reader)
        window.go_to(4, 25)
        time.sleep(0.5)  # for a picture without the input box
        with window.recorded(shots / "denoising"):
            window.press("Control+Alt+g")
            _wait_until(lambda: _saved(window, reader) != READER)
        drafts = window.watched()
        (shots / "drafts.json").write_text(json.dumps(drafts), encoding="utf-8")
    assert len(drafts) > 1


def test_a_missing_server_is_offered(start: Start, workspace: Path, shots: Path) -> None:
    """From a clean profile: one question; nothing is fetched before it is answered."""
    file = workspace / "area.py"
    file.write_text("", encoding="utf-8")
    with start({}, BARE) as vscode, vscode.window() as window:
        window.open(workspace, file)
        assert window.status("install")
        window.wait(_says("no server was found"))
        window.shoot(shots / "missing.png")
        assert not list(vscode.profile.rglob("pyvenv.cfg"))


def test_the_environment_of_any_folder_is_found(
    start: Start, workspace: Path, shots: Path, report: Report
) -> None:
    """With several folders one server runs, that of the first environment that has it."""
    for name in ("one", "two"):
        (workspace / name).mkdir()
    _make_environment(workspace / "two/.venv", report)
    file = workspace / "one/area.py"
    file.write_text("x = ", encoding="utf-8")
    both = workspace / "both.code-workspace"
    both.write_text('{"folders": [{"path": "one"}, {"path": "two"}]}', encoding="utf-8")
    with start({}, BARE) as vscode, vscode.window() as window:
        window.open(both, file)
        vscode.wait_for_log("found by: environment")
        window.status("scripted")
        window.press("End")
        assert window.ghost_after(" ") == "a + b"
        window.shoot(shots / "folders.png")


def test_nothing_of_a_restricted_workspace_is_started(
    start: Start, workspace: Path, shots: Path, report: Report
) -> None:
    """The workspace's own program is started when the user trusts it, and not before."""
    _make_environment(workspace / ".venv", report)
    (workspace / "area.py").write_text("x = ", encoding="utf-8")
    with start({}, BARE, asks_for_trust=True) as vscode, vscode.window() as window:
        window.open(workspace, workspace / "area.py")
        window.status("install")
        window.shoot(shots / "restricted.png")
        assert not report.file.exists()
        window.command("Workspaces: Manage Workspace Trust")
        window.wait("document.querySelector('.workspace-trust-editor')")
        window.click(".workspace-trust-editor .monaco-button:text-is('Trust')")
        window.status("scripted", 30)
        assert report.file.exists()


@pytest.mark.timeout(900)
def test_a_clean_profile_is_three_steps_from_a_suggestion(
    installation: Installation, extension: Path, tmp_path: Path, workspace: Path, shots: Path
) -> None:
    """Install the extension, open a file, agree: the server is installed, and suggests."""
    vsix = tmp_path / "dgemma.vsix"
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = _npm("run", "package:with-server", "--", "--out", str(vsix), environment=python)
    assert run.returncode == 0, run.stdout + run.stderr
    file = workspace / "reader.py"
    file.write_text(READER, encoding="utf-8")
    with (
        editor(installation, tmp_path / "profile", vsix, {}, BARE) as vscode,
        vscode.window() as window,
    ):
        window.open(workspace, file)
        window.wait(_says("no server was found"))
        window.click(".notification-toast .monaco-button:text-is('Install')")
        window.status("installing")
        window.wait(_says("making an environment"))
        window.shoot(shots / "installing.png")
        vscode.wait_for_log("found by: managed", 600)
        vscode.wait_for_log("engine ready")
        window.go_to(4, 25)
        window.press("Backspace")
        window.ghost_after(" ")
        window.shoot(shots / "installed.png")
        note = vscode.profile / MANAGED / "dgemma-installed.json"
        assert json.loads(note.read_text("utf-8"))["requirement"].endswith(".whl")
    shutil.rmtree(tmp_path / "profile")  # 1 GB, which pytest would keep


@pytest.mark.parametrize("installed", ["0.0.9", VERSION], ids=["another version", "rebuilt"])
def test_a_managed_server_is_updated_on_consent(
    installation: Installation,
    vsix: Path,
    tmp_path: Path,
    workspace: Path,
    shots: Path,
    installed: str,
) -> None:
    """The old server works until the user agrees; then the one of the extension is started.

    The environment with the same version, but another build of it, has no note. Where torch came
    from is remembered.
    """
    old, new = Report(tmp_path / "old.jsonl"), Report(tmp_path / "new.jsonl")
    file = workspace / "area.py"
    file.write_text("x = ", encoding="utf-8")
    with editor(
        installation, tmp_path / "profile", _with_wheel(vsix, tmp_path, new), {}, OFFLINE
    ) as vscode:
        note = _install_managed(vscode, _make_wheel(tmp_path / "old", installed, old), cpu=True)
        has_note = installed != VERSION
        if not has_note:
            note.unlink()
        with vscode.window() as window:
            window.open(workspace, file)
            vscode.wait_for_log("found by: managed")
            window.wait(_says("Update it?"), 30)
            window.status("scripted")
            window.shoot(shots / "outdated.png")
            old.wait("options")
            assert not new.file.exists()
            window.click(".notification-toast .monaco-button:text-is('Update')")
            _wait_until(lambda: bool(new.all("options")), 60)
            window.status("scripted")
            noted = json.loads(note.read_text("utf-8"))
            assert f"dgemma_lsp-{VERSION}-" in noted["requirement"]
            assert noted["cpu"] == has_note
            assert ("--extra-index-url" in _output(vscode)) == has_note
            window.command("dgemma: Install the Server")
            window.wait(_says("a server is installed"))
            window.shoot(shots / "updated.png")
    assert len(old.all("options")) == 1


def test_an_update_that_fails_leaves_the_server(
    installation: Installation, vsix: Path, tmp_path: Path, workspace: Path, shots: Path
) -> None:
    """Asked for by the command after "Later"; what the new server needs is not to be had."""
    old, new = Report(tmp_path / "old.jsonl"), Report(tmp_path / "new.jsonl")
    file = workspace / "area.py"
    file.write_text("x = ", encoding="utf-8")
    package = _with_wheel(vsix, tmp_path, new, needs="dgemma-nowhere")
    with editor(installation, tmp_path / "profile", package, {}, OFFLINE) as vscode:
        note = _install_managed(vscode, _make_wheel(tmp_path / "old", "0.0.9", old))
        before = note.read_text("utf-8")
        with vscode.window() as window:
            window.open(workspace, file)
            window.wait(_says("Update it?"), 30)
            window.click(".notification-toast .monaco-button:text-is('Later')")
            window.wait(f"!{_says('Update it?')}")
            window.command("dgemma: Install the Server")
            window.wait(_says("Update it?"))
            window.click(".notification-toast .monaco-button:text-is('Update')")
            window.wait(_says("the server was not updated: ERROR"), 60)
            assert window.status("scripted")
            window.shoot(shots / "not-updated.png")
            window.command("dgemma: Restart the Server")
            _wait_until(lambda: len(old.all("options")) == 2)
    assert note.read_text("utf-8") == before
    assert not new.file.exists()


def test_an_update_can_be_cancelled(
    installation: Installation, vsix: Path, tmp_path: Path, workspace: Path, shots: Path
) -> None:
    """While pip waits for an index that does not answer; the old server is as it was."""
    old, new = Report(tmp_path / "old.jsonl"), Report(tmp_path / "new.jsonl")
    file = workspace / "area.py"
    file.write_text("x = ", encoding="utf-8")
    package = _with_wheel(vsix, tmp_path, new, needs="dgemma-nowhere")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple"}
        with editor(installation, tmp_path / "profile", package, {}, BARE | index) as vscode:
            note = _install_managed(vscode, _make_wheel(tmp_path / "old", "0.0.9", old))
            before = note.read_text("utf-8")
            with vscode.window() as window:
                window.open(workspace, file)
                window.wait(_says("Update it?"), 30)
                window.click(".notification-toast .monaco-button:text-is('Update')")
                window.wait(_says("Processing"), 60)
                window.shoot(shots / "updating.png")
                window.click(".notification-toast .monaco-button:text-is('Cancel')")
                vscode.wait_for_log("the update of the server was cancelled")
                assert window.status("scripted")
                window.command("dgemma: Restart the Server")
                _wait_until(lambda: len(old.all("options")) == 2)
    assert note.read_text("utf-8") == before
    assert not new.file.exists()


@pytest.mark.parametrize(("lacks", "said"), [("", "works on"), ("dgemma-nowhere", "not complete")])
def test_an_update_that_breaks_off_is_not_silent(
    installation: Installation,
    vsix: Path,
    tmp_path: Path,
    workspace: Path,
    shots: Path,
    lacks: str,
    said: str,
) -> None:
    """pip fails when the old server is already away: what is left is looked at, and said."""
    old, new = Report(tmp_path / "old.jsonl"), Report(tmp_path / "new.jsonl")
    file = workspace / "area.py"
    file.write_text("x = ", encoding="utf-8")
    package = _with_wheel(vsix, tmp_path, new, ends_badly=True)
    with editor(installation, tmp_path / "profile", package, {}, OFFLINE) as vscode:
        note = _install_managed(vscode, _make_wheel(tmp_path / "old", "0.0.9", old, needs=lacks))
        with vscode.window() as window:
            window.open(workspace, file)
            window.wait(_says("Update it?"), 30)
            window.click(".notification-toast .monaco-button:text-is('Update')")
            window.wait(_says(said), 60)
            window.shoot(shots / f"broken-off-{bool(lacks)}.png")
            if lacks:
                window.click(".notification-toast .monaco-button:text-is('Install Anew…')")
                window.wait(_says("Install it anew"))
    assert "Successfully uninstalled" in _output(vscode)
    assert json.loads(note.read_text("utf-8"))["requirement"] == ""
    assert not new.file.exists()


def test_a_wrong_path_is_said(start: Start, workspace: Path, shots: Path) -> None:
    """A path that was set is the one: no other server is started in its place."""
    file = workspace / "area.py"
    file.write_text("", encoding="utf-8")
    with start({"dgemma.server.path": "/gone/dgemma-lsp"}) as vscode, vscode.window() as window:
        window.open(workspace, file)
        window.wait(_says("/gone/dgemma-lsp"))
        window.shoot(shots / "misconfigured.png")


def _make_wheel(
    folder: Path, version: str, report: Report, *, needs: str = "", ends_badly: bool = False
) -> Path:
    """A wheel of this name whose program is the scripted server; pip may fail amid it."""
    folder.mkdir()
    file = folder / f"dgemma_lsp-{version}-py3-none-any.whl"
    name = f"dgemma_lsp-{version}"
    program = zipfile.ZipInfo(f"{name}.data/scripts/dgemma-lsp")
    program.external_attr = 0o100755 << 16
    metadata = f"Metadata-Version: 2.1\nName: dgemma-lsp\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(program, _script(report))
        wheel.writestr(
            f"{name}.dist-info/METADATA", metadata + (needs and f"Requires-Dist: {needs}\n")
        )
        wheel.writestr(f"{name}.dist-info/WHEEL", tags)
        if ends_badly:
            wheel.writestr(f"{name}.data/nowhere/file", "")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    return file


def _with_wheel(vsix: Path, folder: Path, report: Report, **wheel_is: Any) -> Path:
    """The extension with a scripted server in it, and with no other."""
    package = folder / "with-wheel.vsix"
    wheel = _make_wheel(folder / "new", VERSION, report, **wheel_is)
    with zipfile.ZipFile(vsix) as source, zipfile.ZipFile(package, "w") as target:
        for entry in source.infolist():
            if not entry.filename.startswith("extension/server/"):
                target.writestr(entry, source.read(entry))
        target.write(wheel, f"extension/server/{wheel.name}")
    return package


def _install_managed(vscode: Editor, wheel: Path, *, cpu: bool = False) -> Path:
    """The environment of the extension with this server, and its note."""
    environment = vscode.profile / MANAGED
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    note = environment / "dgemma-installed.json"
    content = {"requirement": wheel.name, "sha256": digest, "cpu": cpu}
    note.write_text(json.dumps(content), encoding="utf-8")
    return note


def _make_environment(folder: Path, report: Report) -> None:
    """A Python environment whose dgemma-lsp is the scripted server."""
    program = folder / "bin/dgemma-lsp"
    program.parent.mkdir(parents=True)
    program.write_text(_script(report), "utf-8")
    program.chmod(0o755)


def _output(vscode: Editor) -> str:
    return "".join(log.read_text("utf-8") for log in vscode.profile.rglob("dgemma*.log"))


def _script(report: Report) -> str:
    return (
        '#!/bin/sh\nif [ "$1" = --version ]; then echo scripted; exit; fi\n'
        f"exec {sys.executable} {SCRIPTED} {report.file}\n"
    )


def _saved(window: Window, file: Path) -> str:
    """The text of the document, by way of the disk; it has some."""
    window.save()
    return _wait_until(lambda: file.read_text(encoding="utf-8"))  # empty while it is being written


def _wait_until(look: Callable[[], Seen], seconds: float = 15) -> Seen:
    """What there is to see, once it is truthy."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return seen


def _listed(text: str) -> str:
    return f"document.querySelector('.quick-input-list')?.textContent.includes({json.dumps(text)})"


def _says(text: str) -> str:
    toasts = "document.querySelector('.notifications-toasts')"
    return f"{toasts}?.textContent.includes({json.dumps(text)})"
