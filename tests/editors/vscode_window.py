"""A real VS Code in a real browser, for tests: code-server, Chromium, and keys.

`Installation` is what `vscode/install.sh` put there, `Editor` one code-server with a profile of its
own, `Window` its page. Nothing here knows what is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "vscode"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgemma-e2e/vscode"

# What makes a picture the same everywhere, and keeps questions away that no test is about.
_SETTINGS = {
    "editor.fontSize": 15,
    "editor.minimap.enabled": False,
    "editor.quickSuggestions": {"other": "off", "comments": "off", "strings": "off"},
    "editor.inlineSuggest.showToolbar": "never",
    "editor.autoClosingBrackets": "never",
    "editor.autoClosingQuotes": "never",
    "editor.occurrencesHighlight": "off",
    "window.menuBarVisibility": "hidden",
    "workbench.startupEditor": "none",
    "workbench.activityBar.location": "hidden",
    "workbench.tips.enabled": False,
    "chat.disableAIFeatures": True,
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "chat.commandCenter.enabled": False,
    "extensions.autoCheckUpdates": False,
    "telemetry.telemetryLevel": "off",
    "security.workspace.trust.startupPrompt": "never",
    "files.hotExit": "off",
    "files.autoSave": "off",
}


# [text, colour] of all that decorations draw behind the text, in the order of the screen.
_AFTER_TEXT = """(() => {
  const found = [];
  for (const span of document.querySelectorAll('.view-line span span')) {
    const style = getComputedStyle(span, '::after');
    if (!['none', 'normal', '""'].includes(style.content)) {
      found.push([JSON.parse(style.content), style.color]);
    }
  }
  return found;
})()"""


class CannotInstall(Exception):
    """This machine cannot have the editor; the text says why."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the programs are."""

    folder: Path
    chromium: str

    @property
    def node(self) -> str:
        return str(self.folder / "node_modules/node/bin/node")

    @property
    def code_server(self) -> list[str]:
        return [self.node, str(self.folder / "node_modules/code-server/out/node/entry.js")]


def install(folder: Path = CACHE) -> Installation:
    """Fetch and build what is not there yet, which takes minutes the first time.

    Raises:
        CannotInstall: with the reason.
    """
    run = subprocess.run(
        ["bash", str(HERE / "install.sh"), str(folder)], stdout=subprocess.PIPE, text=True
    )
    if run.returncode:
        raise CannotInstall(run.stdout.strip() or f"install.sh ended with {run.returncode}")
    chromium = shutil.which("chromium")
    if chromium is None:
        raise CannotInstall("chromium is not installed")
    return Installation(folder, chromium)


class Window:
    """The page, by way of drive.mjs."""

    def __init__(self, installation: Installation, url: str) -> None:
        self._url = url
        self._process = subprocess.Popen(
            [installation.node, str(HERE / "drive.mjs"), installation.chromium],
            cwd=installation.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def open(self, *files: Path) -> None:
        """Show a folder or a .code-workspace, and open files in it; the last has the focus."""
        kind = "folder" if files[0].is_dir() else "workspace"
        self._do("open", url=f"{self._url}/?{kind}={files[0]}")
        self.wait("document.querySelector('.monaco-workbench .part.statusbar')", 60)
        for file in files[1:]:
            self.open_file(file)

    def open_file(self, file: Path) -> None:
        self.press("Control+P")
        self.wait("document.querySelector('.quick-input-widget:not([style*=\"none\"]) input')")
        self.type(file.name)
        self.wait(
            "[...document.querySelectorAll('.quick-input-list .label-name')]"
            f".some((it) => it.textContent === {json.dumps(file.name)})",
            30,
        )
        self.press("Enter")
        tab = json.dumps(f'.tab.active[data-resource-name="{file.name}"]')
        self.wait(
            f"document.querySelector({tab})"
            " && document.activeElement.closest('.monaco-editor') !== null",
            30,
        )

    def press(self, *keys: str) -> None:
        """Keys by their names in playwright, such as "Control+End"."""
        self._do("keys", keys=list(keys))

    def type(self, text: str, *, delay: int = 20) -> None:
        self._do("type", text=text, delay=delay)

    def command(self, title: str) -> None:
        """Run a command from the palette."""
        shown = json.dumps(title)

        def search() -> None:
            self.press("F1")
            self.wait("document.querySelector('.quick-input-widget:not([style*=\"none\"]) input')")
            self.type(title, delay=0)

        self._insist(
            search,
            "document.querySelector('.quick-input-list .monaco-list-row.focused')"
            f"?.textContent.includes({shown})",
        )
        self.press("Enter")

    def code_actions(self, title: str) -> None:
        """Open the menu of code actions; one of them has this title."""
        self._insist(
            lambda: self.press("Escape", "Control+."),
            f"document.querySelector('.action-widget')?.textContent.includes({json.dumps(title)})",
        )

    def save(self) -> None:
        """Save the document, with what changes in it between the key and the saving."""
        self._insist(
            lambda: self.press("Control+S"), "!document.querySelector('.tab.active.dirty')"
        )

    def _insist(self, ask: Callable[[], None], shown: str) -> None:
        """Press keys until an expression is truthy: a busy window loses some."""
        for seconds in (5, 10, 30):
            ask()
            try:
                self.wait(shown, seconds)
                return
            except AssertionError:
                if seconds == 30:
                    raise
                self.press("Escape", "Escape")

    def go_to(self, line: int, column: int) -> None:
        """Put the cursor; both count from 1."""
        self.press("Control+G")
        self.wait("document.querySelector('.quick-input-widget:not([style*=\"none\"]) input')")
        self.type(f"{line}:{column}", delay=0)
        self.press("Enter")
        # Until the box is closed it takes the keys that it knows, wherever the focus is.
        self.wait("document.querySelector('.quick-input-widget[style*=\"none\"]')")
        self.wait("document.activeElement.closest('.monaco-editor')")

    def wait(self, js: str, seconds: float = 15) -> Any:
        """The value of an expression in the page, once it is truthy.

        Raises:
            AssertionError: it was not in time.
        """
        return self._do("wait", js=js, ms=int(seconds * 1000))

    def evaluate(self, js: str) -> Any:
        return self._do("eval", js=js)

    def click(self, selector: str) -> None:
        self._do("click", selector=selector)

    def ghost_text(self, seconds: float = 15) -> str:
        """The suggestion in grey, once there is one."""
        spans = "[...document.querySelectorAll('.ghost-text-decoration')]"
        text = self.wait(f"{spans}.map((it) => it.textContent).join('')", seconds)
        return str(text).replace("\xa0", " ")

    def ghost_after(self, typed: str) -> str:
        """The suggestion that comes for a text; typed anew if none does.

        For a key before it knows the server VS Code asks nobody, nor later.
        """
        is_there = False

        def ask() -> None:
            nonlocal is_there
            if is_there:
                self.press(*["Backspace"] * len(typed))
            self.type(typed)
            is_there = True

        self._insist(ask, "document.querySelector('.ghost-text-decoration')")
        return self.ghost_text()

    def after_text(self) -> list[tuple[str, str]]:
        """What decorations draw behind the text: (text, colour), in the order of the screen."""
        return [(text.replace("\xa0", " "), color) for text, color in self.evaluate(_AFTER_TEXT)]

    def watch_after_text(self) -> None:
        """Remember every text that decorations draw from now on, for `watched`."""
        self.evaluate(
            "window.watched = []; setInterval(() => {"
            f"const text = {_AFTER_TEXT}.map(([text]) => text).join('');"
            "if (text && text !== window.watched.at(-1)) window.watched.push(text); }, 5)"
        )

    def watched(self) -> list[str]:
        return [text.replace("\xa0", " ") for text in self.evaluate("window.watched")]

    def status(self, part: str, seconds: float = 15) -> str:
        """The text of our item in the status bar, once it contains `part`."""
        item = "document.querySelector('.statusbar-item[id*=\"dgemma\"]')"
        text = self.wait(
            f"{item}?.textContent.includes({json.dumps(part)}) && {item}.textContent", seconds
        )
        return str(text).replace("\xa0", " ").strip()

    def shoot(self, path: Path, *, clip: tuple[int, int, int, int] | None = None) -> None:
        """A screenshot, of all or of (x, y, width, height)."""
        time.sleep(0.3)  # what is shown fades in
        box = clip and dict(zip(("x", "y", "width", "height"), clip, strict=True))
        self._do("shot", path=str(path), clip=box)

    @contextmanager
    def recorded(self, folder: Path) -> Iterator[None]:
        """A picture after every change, in files named by their milliseconds."""
        folder.mkdir(parents=True, exist_ok=True)
        self._do("record", folder=str(folder))
        try:
            yield
        finally:
            self._do("stop")

    def _do(self, op: str, **arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the browser ended during {op}"
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"{op} {arguments}: {answer['error']}")
        return answer["value"]


@dataclass(frozen=True, slots=True)
class Editor:
    """One VS Code: a profile, an extension, a port."""

    installation: Installation
    profile: Path
    port: int

    @contextmanager
    def window(self) -> Iterator[Window]:
        window = Window(self.installation, f"http://127.0.0.1:{self.port}")
        try:
            yield window
        except BaseException:
            with suppress(AssertionError, OSError):
                window.shoot(self.profile.parent / "failed.png")
            raise
        finally:
            window.close()

    def wait_for_log(self, part: str, seconds: float = 30) -> None:
        """Until the extension's output says something."""
        deadline = time.monotonic() + seconds
        logs = self.profile / "logs"
        while not any(part in log.read_text("utf-8") for log in logs.rglob("dgemma*.log")):
            assert time.monotonic() < deadline, f"{part!r} is not in the output"
            time.sleep(0.1)


@contextmanager
def editor(
    installation: Installation,
    profile: Path,
    vsix: Path,
    settings: dict[str, Any],
    environment: dict[str, str] | None = None,
    *,
    asks_for_trust: bool = False,
) -> Iterator[Editor]:
    """A VS Code with a fresh profile in which a .vsix was installed."""
    user = profile / "User"
    user.mkdir(parents=True)
    (user / "settings.json").write_text(json.dumps(_SETTINGS | settings), encoding="utf-8")
    (profile / "config.yaml").write_text("auth: none\n", encoding="utf-8")
    folders = [
        *("--config", str(profile / "config.yaml")),
        *("--user-data-dir", str(profile), "--extensions-dir", str(profile / "extensions")),
    ]
    variables = {**os.environ, **(environment or {})}
    subprocess.run(
        [*installation.code_server, *folders, "--install-extension", str(vsix)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=variables,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (profile / "code-server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(*installation.code_server, *folders, "--bind-addr", f"127.0.0.1:{port}"),
                *("--disable-telemetry", "--disable-update-check"),
                "--disable-getting-started-override",
                *([] if asks_for_trust else ["--disable-workspace-trust"]),
            ],
            stdout=log,
            stderr=log,
            env=variables,
            start_new_session=True,  # it has children; all are ended together
        )
        try:
            _wait_for(port)
            yield Editor(installation, profile, port)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("code-server did not come up within a minute")
