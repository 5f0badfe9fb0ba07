"""The command line, with a tiny random checkpoint: what it prints, writes, refuses, and returns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgemma_engine
from dgemma_engine import Decoder, InfillRequest, timing
from dgemma_engine.fake import FakeEngine
from dgemma_engine.machine import Memory
from dgemma_lsp.cli import main
from dgemma_lsp.settings import Settings

from ..engine.tiny import SAMPLE, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    # No grammar judges what a random model writes into it.
    path = tmp_path / "sample.txt"
    path.write_bytes(SAMPLE.encode())
    return path


def run(*arguments: object) -> int:
    """Run the command line and return its exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing else was printed."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("dgemma-lsp: error: ")
    return line


def test_fill_shows_the_result_in_place(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines around the cursor are shown with their numbers, and the file is not touched."""
    assert run("fill", f"{source}:2:12", "--model", checkpoint) == 0
    shown = capsys.readouterr().out
    assert "1 │ def add(left, right):" in shown
    assert "2 │     return " in shown
    assert "passes" in shown
    assert source.read_text() == SAMPLE


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_fill_writes_what_json_says(
    line_break: str, checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--write puts exactly the reported text at the reported place, in the file's line breaks."""
    text = SAMPLE.replace("\n", line_break)
    source.write_bytes(text.encode())
    source.chmod(0o640)
    for seed in range(20):  # a random model may propose nothing; the first that proposes counts
        arguments = ("fill", f"{source}:2:12-3:1", "--model", checkpoint, "--seed", seed)
        assert run(*arguments, "--json", "--write") == 0
        answer = json.loads(capsys.readouterr().out)
        if answer["wrote"]:
            break
    assert answer["wrote"], "no seed gave a fill"
    assert answer["kind"] == "selection"
    start = text.index("left + right")
    end = start + len("left + right")
    fill = answer["text"].replace("\n", line_break)
    assert (text[:start] + fill + text[end:]).encode() == source.read_bytes()
    assert answer["start"] == {"line": 2, "column": 12}
    assert answer["end"] == {"line": 2, "column": 24}
    assert source.stat().st_mode & 0o777 == 0o640


def test_fill_shows_any_line_break(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file from Windows, or with rich's markup in it, is shown as it reads."""
    source.write_bytes(b"x = '[bold]'\r\ny = \r\nz = 3\r\n")
    assert run("fill", f"{source}:2:5", "--model", checkpoint) == 0
    shown = capsys.readouterr().out
    assert "1 \u2502 x = '[bold]'\n" in shown
    assert "3 \u2502 z = 3\n" in shown


def test_fill_repeats_for_a_seed(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs give the same text; --steps bounds the passes of every attempt."""
    answers = []
    for _ in range(2):
        run("fill", f"{source}:2:12", "--model", checkpoint, "--json", "--seed", 4, "--steps", 3)
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["token_confidences"] == answers[1]["token_confidences"]
    assert answers[0]["passes"] <= 3 * (1 + Settings().repairs)


@pytest.mark.parametrize("decoder", ["diffusion", "left_to_right"])
def test_fill_takes_the_decoder_that_is_named(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str], decoder: str
) -> None:
    """And says in its answer which one it was, and how sure the model is."""
    location = f"{source}:2:12"
    assert run("fill", location, "--model", checkpoint, "--json", "--decoder", decoder) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["decoder"] == decoder
    assert 0.0 <= answer["confidence"] <= 1.0


def test_watch_shows_every_pass(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a pass where the output is no terminal."""
    assert run("fill", f"{source}:2:12", "--model", checkpoint, "--watch", "--steps", 3) == 0
    shown = capsys.readouterr().out
    assert "pass 1 of at most 3" in shown
    assert "mean entropy" in shown


def test_bad_locations(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was typed cannot be used: one line that says what is wrong, status 2, no engine."""
    folder = source.parent
    (folder / "binary.py").write_bytes(b"\x00\x01")
    (folder / "latin.py").write_bytes("é".encode("latin-1"))
    (folder / "large.py").write_bytes(b"x = 1\n" * 1_750_000)
    for location, message in {
        folder / "absent.py:1:1": "no such file",
        f"{folder}:1:1": "is a folder, not a file",
        f"{source}": "is not a location; write FILE:LINE:COL",
        f"{source}:2": "is not a location; write FILE:LINE:COL",
        f"{source}:99:1": "has 11 lines; there is no line 99",
        f"{source}:0:1": "there is no line 0",
        f"{source}:2:99": "line 2 has 23 characters; the cursor can be in columns 1 to 24",
        f"{source}:2:9-2:3": "the span ends before it starts",
        f"{folder}/binary.py:1:1": "is a binary file",
        f"{folder}/latin.py:1:1": "is not UTF-8 text (byte 0)",
        f"{folder}/large.py:1:1": "has 10.0 MiB; files over 5 MiB are not filled",
    }.items():
        assert run("fill", location) == 2
        assert message in error_line(capsys)


def test_bad_models(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could not be done: one line that says why, status 1, the file untouched."""
    location = f"{source}:2:12"

    def broken(name: str) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        for file in checkpoint.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        return copy

    no_tokenizer, truncated, other = broken("a"), broken("b"), broken("c")
    (no_tokenizer / "tokenizer.json").unlink()
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (other / "config.json").write_text('{"model_type": "llama"}')
    for model, message in {
        tmp_path / "nowhere": "no such checkpoint folder",
        tmp_path: "is not a checkpoint: it has no config.json",
        no_tokenizer: "has no tokenizer.json",
        truncated: "is damaged or cut short",
        other: "unsupported architecture: model_type is 'llama'",
    }.items():
        assert run("fill", location, "--model", model, "--write") == 1
        assert message in error_line(capsys)
        assert source.read_text() == SAMPLE
    assert run("fill", location, "--model", checkpoint, "--device", "cuda:9") == 1
    assert "device 'cuda:9' cannot be used" in error_line(capsys)
    assert run("fill", location, "--model", checkpoint, "--dtype", "int3") == 1
    assert "got 'int3'" in error_line(capsys)


def test_no_torch(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without torch the line says how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("fill", f"{source}:2:12") == 1
    assert "pip install 'torch" in error_line(capsys)


def test_unwritable_file_keeps_its_content(
    checkpoint: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A disk that is full at the last moment costs the fill, not the file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    statuses = set()
    for seed in range(20):
        location = f"{source}:2:12-3:1"
        statuses.add(run("fill", location, "--model", checkpoint, "--write", "--seed", seed))
        if 2 in statuses:
            break
    assert 2 in statuses
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert source.read_text() == SAMPLE
    assert [path.name for path in source.parent.iterdir()] == ["sample.txt"]


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown options and two transports at once are usage errors."""
    assert run("fill") == 2
    assert run("fill", "x.py:1:1", "--steps", "0") == 2
    assert run("serve", "--tcp", "--ws") == 2
    assert "choose one of --stdio, --tcp and --ws" in capsys.readouterr().err


def test_doctor(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It tells versions, device, model and a fill; with a broken model it says so and returns 1."""
    assert run("doctor", "--model", checkpoint) == 0
    shown = capsys.readouterr().out
    for part in ("python", "torch", "cpu in float32", "strategy markers", "passes in", "works"):
        assert part in shown
    assert run("doctor", "--model", tmp_path) == 1
    assert "it has no config.json" in " ".join(capsys.readouterr().out.split())


def test_demo(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fills every hole of the sample and says how many are as their author had them."""
    assert run("demo", "--model", checkpoint) == 0
    shown = capsys.readouterr().out
    assert shown.count("the author had written:") == 7
    assert "7 holes filled, " in shown
    assert "«" not in shown


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """What every command loads: drafts by diffusion, else the names of things."""

    def answer(request: InfillRequest) -> str:
        return "draft" if request.decoder is Decoder.DIFFUSION else "name"

    engine = FakeEngine(answer, num_passes=1)
    monkeypatch.setattr(dgemma_engine, "load_engine", lambda *_: engine)
    return engine


@pytest.mark.usefixtures("fake_engine")
def test_demo_of_the_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    """What is offered counts, as in an editor; what diffusion makes of it is told beside it."""
    assert run("demo") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("by diffusion, 1 passes, 0 ms: 'draft'") == 7
    assert "raise KeyError(name)" in shown
    assert "7 holes filled, 1 as their author had (by diffusion 0)" in shown


@pytest.mark.usefixtures("fake_engine")
def test_time_to_watch_is_not_the_fills(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal each pass stays for a moment; the fill was as fast as it is."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    start = time.monotonic()
    assert run("demo") == 0
    assert time.monotonic() - start > 7 * 0.15
    assert capsys.readouterr().out.count("by diffusion, 1 passes, 0 ms:") == 7


@pytest.mark.parametrize(
    "statement",
    [
        "import dgemma_lsp, dgemma_engine",
        "from dgemma_lsp.cli import main; main(['--help'])",
        "from dgemma_lsp.cli import main; main(['serve', '--help'])",
        "import dgemma_lsp.server",
        "import dgemma_engine.copying",
    ],
)
def test_torch_is_not_imported_needlessly(statement: str) -> None:
    """Importing the package, the help, and the server's start do without torch."""
    program = f"""
import sys
try:
    {statement}
except SystemExit:
    pass
found = {{"torch", "triton", "numpy", "tokenizers"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_context_prints_what_the_model_would_see(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompt and canvas of a place; the project's settings count, what is wrong in them is told."""
    (tmp_path / "pyproject.toml").write_text("[tool.dgemma-lsp]\nprefixChars = 12\nseed = -1\n")
    path = tmp_path / "a.py"
    path.write_text("first = 1\nsecond = first\nthird = \n")
    assert run("context", f"{path}:3:9", "--model", checkpoint) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("hole: expression (line)\nprompt (")
    assert "third =" in captured.out
    assert "first = 1" not in captured.out
    assert "setting 'seed' must be" in captured.err


def test_context_of_a_file_of_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not read."""
    path = tmp_path / ".env"
    path.write_text("KEY = 1\n")
    assert run("context", f"{path}:1:3") == 2
    assert "secrets" in error_line(capsys)


def test_logs_and_traces_go_where_they_are_sent(tmp_path: Path) -> None:
    """A whole conversation: messages in the trace, none of its code in the log."""
    log, trace = tmp_path / "log", tmp_path / "trace"
    messages = [
        {"id": 1, "method": "initialize", "params": {"processId": None, "capabilities": {}}},
        {
            "method": "textDocument/didOpen",
            "params": {
                "textDocument": {
                    "uri": "file:///a.txt",
                    "languageId": "plaintext",
                    "version": 1,
                    "text": "a word of the user",
                }
            },
        },
        {"id": 2, "method": "shutdown"},
        {"method": "exit"},
    ]
    frames = b""
    for message in messages:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        frames += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    command = [sys.executable, "-m", "dgemma_lsp", "serve", "--log-file", log, "--trace", trace]
    done = subprocess.run(command, input=frames, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "a word of the user" in trace.read_text()
    assert "to client" in trace.read_text()
    assert "a word of the user" not in log.read_text()
    assert run("serve", "--log-file", tmp_path / "no" / "log") == 2


def test_weights_in_few_bits_are_an_option(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every command that loads a model; another name is refused with those there are."""
    arguments = ("fill", f"{source}:2:12", "--model", checkpoint, "--json")
    assert run(*arguments, "--quantization", "nvfp4") == 0
    assert json.loads(capsys.readouterr().out)["passes"] > 0
    assert run(*arguments, "--quantization", "int3") == 2
    assert "'fp8', 'int8', 'int4', 'nvfp4'" in capsys.readouterr().err


def test_quantize_writes_what_fill_reads(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new folder; the second time it is there already."""
    arguments = ("quantize", checkpoint, tmp_path / "small", "--format", "int4")
    assert run(*arguments) == 0
    assert f"use it with --model {tmp_path}/small" in capsys.readouterr().out
    assert run("fill", f"{source}:2:12", "--model", tmp_path / "small") == 0
    capsys.readouterr()
    assert run(*arguments) == 1
    assert "exists already" in error_line(capsys)


GPU = Memory("cuda:0", "a card of 24 GB", 25_000_000_000, 24_000_000_000)


def test_models_tells_what_runs_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every known model with its sizes, what fits on each device, and a command; no network."""

    def no_network(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", no_network)
    small = Memory("cpu", "2 CPU cores", 16_000_000_000, 8_000_000_000)
    monkeypatch.setattr(dgemma_engine, "memory_of_this_machine", lambda: [small, GPU])
    assert run("models") == 0
    shown = capsys.readouterr().out
    assert "cuda:0: a card of 24 GB, 25.0 GB of memory, 24.0 GB free" in shown
    rows = {line.split("  ")[0]: line.split() for line in shown.splitlines()}
    assert rows["default"][-2:] == ["4,096", "4,096"]
    assert rows["google/diffusiongemma-26B-A4B-it"][-4:] == ["too", "large", "too", "large"]
    assert "51.6 GB" in shown
    assert "50.5 GB" in shown
    four_bits = next(line for line in shown.splitlines() if "--quantization int4" in line)
    assert "too large" in four_bits, "not into 16 GB"
    assert four_bits.endswith(" 65,536"), "but with that context on the card"
    assert (
        "hf download nvidia/diffusiongemma-26B-A4B-it-NVFP4 "
        "--local-dir diffusiongemma-26B-A4B-it-NVFP4\n"
    ) in shown


def test_models_describes_folders(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As stored, and in fewer bits; what is no checkpoint is an error."""
    assert run("models", checkpoint) == 0
    shown = capsys.readouterr().out
    assert "M parameters, float32" in shown
    assert "--quantization nvfp4" in shown
    assert "hf download" not in shown
    assert run("models", tmp_path / "absent") == 1
    assert "no such checkpoint folder" in capsys.readouterr().err


def test_bench_times_the_users_model(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes, fills and prefills on this device, with the floor beside them."""
    monkeypatch.setattr(timing.Plan, "__init__", partial_plan(timing.Plan.__init__))
    assert run("bench", "--model", checkpoint, "--device", "cpu", "--quantization", "int8") == 0
    shown = capsys.readouterr().out
    assert "weights in int8; a copy moves" in shown
    assert "incremental prefill" in shown
    assert run("bench", "--model", checkpoint, "--device", "cpu", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["what"] for row in rows} == {"prefill", "incremental prefill", "pass", "fill"}
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 for row in rows)


def partial_plan(build: Callable[..., None]) -> Callable[..., None]:
    """A plan that a tiny model can follow in a moment."""

    def small(self: timing.Plan, **changes: Any) -> None:
        build(self, **{"canvases": (32, 64), "prefixes": (40,), "repeats": 1, **changes})

    return small
