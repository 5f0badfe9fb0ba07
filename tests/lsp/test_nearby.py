"""What a model that recalls is handed beside its windows: which texts, in which order, how much."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp import nearby
from dgemma_lsp.context import ContextBudget, build_request
from dgemma_lsp.document import DocumentSnapshot
from dgemma_lsp.hole import Hole
from dgemma_lsp.nearby import NearbyTexts, nearest_first, rest_of_document, texts_near, within
from dgemma_lsp.settings import Settings


def snapshot_of(path: Path, text: str = "x = 1\n") -> DocumentSnapshot:
    return DocumentSnapshot(path.as_uri(), 0, "python", text)


def at_end(snapshot: DocumentSnapshot) -> Hole:
    return Hole(len(snapshot.text), len(snapshot.text), HoleKind.LINE)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    write(
        tmp_path,
        app__own="import named\n",
        app__beside="beside = 1\n",
        lib__other="other = 1\n",
        lib__named="named = 1\n",
        venv__lib="installed = 1\n",
    )
    return tmp_path


def test_with_the_windows_it_is_the_whole_document() -> None:
    text = "".join(f"def f{index}():\n    return {index}\n\n\n" for index in range(200))
    snapshot = DocumentSnapshot("file:///a.py", 0, "python", text)
    settings = Settings(prefix_chars=500, suffix_chars=300)
    for place in (0, 5, 2500, len(text)):
        hole = Hole(place, place, HoleKind.LINE)
        request = build_request(snapshot, hole, ContextBudget(500, 300))
        rest = rest_of_document(snapshot, hole, settings)
        whole = len(request.prefix) + len(request.suffix) + sum(map(len, rest))
        assert abs(whole - len(text)) < 300, "a suffix window ends at a line's end"
        assert (text.startswith(rest[0]) if place == len(text) else True) or not rest


def test_the_folder_first_then_what_is_named_then_what_is_near(project: Path) -> None:
    own = project / "app" / "own.py"
    found = texts_near(
        own, snapshot_of(own, "import named\n"), at_end(snapshot_of(own)), Settings()
    )
    assert found == ("beside = 1\n", "named = 1\n", "other = 1\n")
    places = [Path("/p/a/z.py"), Path("/p/a/b/c/d.py"), Path("/p/q.py"), Path("/p/a/b/e.py")]
    assert nearest_first(Path("/p/a/b/own.py"), "", places) == [
        Path("/p/a/b/e.py"),
        Path("/p/a/b/c/d.py"),
        Path("/p/a/z.py"),
        Path("/p/q.py"),
    ]


def test_of_a_large_project_what_is_near_is_found(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearby, "_MOST_LISTED", 4)
    write(project, **{f"aaa__deep__f{index}": f"far = {index}\n" for index in range(20)})
    write(project, app__below__near="near = 1\n")
    own = project / "app" / "own.py"
    texts = texts_near(own, snapshot_of(own), at_end(snapshot_of(own)), Settings())
    assert texts[:2] == ("beside = 1\n", "near = 1\n")
    assert len(texts) == len(set(texts)), "no file twice"


def test_a_file_in_no_project_has_its_folder_alone(tmp_path: Path) -> None:
    write(tmp_path, own="", beside="beside = 1\n", below__deep="deep = 1\n")
    own = tmp_path / "own.py"
    assert texts_near(own, snapshot_of(own), at_end(snapshot_of(own)), Settings()) == (
        "beside = 1\n",
    )


def test_secrets_and_what_git_or_the_user_leaves_out_are_not_read(project: Path) -> None:
    (project / ".git").mkdir()
    (project / ".gitignore").write_text("generated.py\n", encoding="utf-8")
    write(project, app__generated="g = 1\n", app__secrets="s = 1\n", app__private="p = 1\n")
    own = project / "app" / "own.py"
    settings = Settings(ignore_globs=("private.py",))
    texts = texts_near(own, snapshot_of(own), at_end(snapshot_of(own)), settings)
    assert not {"g = 1\n", "s = 1\n", "p = 1\n"} & set(texts)
    assert "beside = 1\n" in texts


def test_what_is_no_text_or_too_long_is_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "app" / "bytes.py").write_bytes(b"\xff\xfe = 1")
    (project / "app" / "dangling.py").symlink_to(project / "nowhere.py")
    (project.parent / "outside.py").write_text("outside = 1\n", encoding="utf-8")
    (project / "app" / "link.py").symlink_to(project.parent / "outside.py")
    write(project, app__long="x" * 300)
    monkeypatch.setattr(nearby, "_LONGEST_FILE", 200)
    own = project / "app" / "own.py"
    texts = texts_near(own, snapshot_of(own), at_end(snapshot_of(own)), Settings())
    assert texts[0] == "beside = 1\n"
    assert all("x" * 300 not in text and "\xff" not in text for text in texts)
    assert "outside = 1\n" not in texts


def test_a_budget_cuts_the_last_text_that_it_reaches() -> None:
    assert within(["aaaa", "bbbb", "cccc"], 6) == ("aaaa", "bb")
    assert within(["aaaa"], 0) == ()


def test_open_files_take_the_place_of_those_on_disk(project: Path) -> None:
    own, beside = project / "app" / "own.py", project / "app" / "beside.py"
    snapshot = snapshot_of(own)
    others = [
        snapshot_of(project / "lib" / "other.py", "typed = 1\n"),
        snapshot_of(beside, "edited = 1\n"),
        DocumentSnapshot((project / "a.js").as_uri(), 0, "javascript", "let a = 1\n"),
    ]
    texts = NearbyTexts()
    asyncio.run(texts.read_project(snapshot, Settings()))
    found = texts.find(snapshot, at_end(snapshot), Settings(), others)
    assert found == ("edited = 1\n", "typed = 1\n", "named = 1\n")
    closed = Settings(context_sources=("imports", "project"))
    assert texts.find(snapshot, at_end(snapshot), closed, others)[0] == "beside = 1\n"
    nothing = dataclasses.replace(closed, context_sources=("imports",))
    assert texts.find(snapshot, at_end(snapshot), nothing, others) == ()
    texts.forget(snapshot.uri)
    assert texts.find(snapshot, at_end(snapshot), closed, others) == ()


def test_a_file_that_changed_is_read_again(project: Path) -> None:
    own, beside = project / "app" / "own.py", project / "app" / "beside.py"
    snapshot = snapshot_of(own)

    async def read_twice() -> tuple[str, ...]:
        texts = NearbyTexts()
        await asyncio.gather(
            texts.read_project(snapshot, Settings()), texts.read_project(snapshot, Settings())
        )
        beside.write_text("changed = 22\n", encoding="utf-8")
        os.utime(beside, ns=(1, 1))
        await texts.read_project(snapshot, Settings())
        return texts.find(snapshot, at_end(snapshot), Settings())

    assert asyncio.run(read_twice())[0] == "changed = 22\n"


def test_a_document_without_a_file_has_no_project() -> None:
    snapshot = DocumentSnapshot("untitled:Untitled-1", 0, "python", "x = 1\n")
    texts = NearbyTexts()
    asyncio.run(texts.read_project(snapshot, Settings()))
    assert texts.find(snapshot, at_end(snapshot), Settings()) == ()
