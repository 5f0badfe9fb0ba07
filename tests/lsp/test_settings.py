"""Settings: a bad value costs a sentence, never the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma_lsp.settings import Settings, engine_choice, read_project, read_settings, schema


def test_names_are_camel_case() -> None:
    """What an editor sends is taken over what was there."""
    raw = {"model": "/m", "maxTokens": 9, "disabledLanguages": ["markdown"], "seed": None}
    settings, problems = read_settings(raw, Settings(seed=5))
    assert problems == []
    assert settings == Settings(model="/m", max_tokens=9, disabled_languages=("markdown",), seed=5)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"maxTokens": 0}, "setting 'maxTokens' must be a whole number from 1 to 4096, got 0"),
        ({"maxTokens": "9"}, "got '9'; 64 is kept"),
        ({"maxTokens": True}, "got True"),
        ({"maxTokens": 1.5}, "got 1.5"),
        ({"model": ""}, "setting 'model' must be a text"),
        ({"decoder": "magic"}, "must be one of auto, diffusion, left_to_right, got 'magic'"),
        ({"minConfidence": 101}, "setting 'minConfidence' must be a whole number from 0 to 100"),
        ({"disabledLanguages": "python"}, "must be a list of language ids"),
        ({"disabledLanguages": [1]}, "must be a list of language ids"),
        ({"deadline": 5}, "unknown setting 'deadline'; did you mean 'deadlineMs'?"),
        ({"colour": 5}, "unknown setting 'colour'; known are enabled, model, device"),
        ({"enabled": 1}, "setting 'enabled' must be true or false, got 1"),
        ({"trigger": "always"}, "must be one of automatic, invoked, got 'always'"),
        ({"disabledIn": ["tests"]}, "must be a list of comments or strings, got ['tests']"),
        ({"passes": 0}, "must be a whole number from 1 to 256, got 0; None is kept"),
    ],
)
def test_a_bad_value_keeps_the_old_one(raw: dict[str, object], problem: str) -> None:
    """And the good ones beside it are taken."""
    settings, problems = read_settings({**raw, "seed": 3}, Settings())
    assert settings == Settings(seed=3)
    (told,) = problems
    assert problem in told


@pytest.mark.parametrize("raw", [None, {}])
def test_nothing_changes_nothing(raw: object) -> None:
    """No settings, or none set."""
    assert read_settings(raw, Settings(seed=2)) == (Settings(seed=2), [])


def test_other_than_an_object_is_told() -> None:
    """A list or a text in the place of the settings."""
    settings, problems = read_settings(["model"], Settings())
    assert settings == Settings()
    assert problems == ["settings must be an object, got list; defaults are kept"]


def test_bad_values_cannot_be_constructed() -> None:
    """The dataclass itself refuses them too."""
    with pytest.raises(ValueError, match="maxTokens must be a whole number"):
        Settings(max_tokens=0)


def test_schema_describes_every_setting() -> None:
    """The defaults are valid, and each has its type and a description."""
    described = schema()
    settings, problems = read_settings(
        {name: entry["default"] for name, entry in described.items()}, Settings()
    )
    assert (settings, problems) == (Settings(), [])
    assert all(entry["description"].endswith(".") and entry["type"] for entry in described.values())


PROJECT = """
[tool.dgemma-lsp]
maxTokens = 32
ignoreGlobs = ["vendor/"]
model = "weights"
seed = -1
"""


def test_a_project_sets_what_is_its_own(tmp_path: Path) -> None:
    """Its table is read; what would choose a model, or is out of range, is refused."""
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    settings, (refused, bad) = read_project(tmp_path, Settings())
    assert settings == Settings(max_tokens=32, ignore_globs=("vendor/",))
    assert "a project may not set 'model'" in refused
    assert "setting 'seed' must be a whole number" in bad


def test_a_project_has_no_say_in_where_the_engine_is(tmp_path: Path) -> None:
    """A folder that was cloned cannot send the user's code elsewhere, nor name a key to send."""
    table = 'engine = "vllm"\nengineUrl = "http://evil"\nengineKeyVariable = "AWS_SECRET"\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.dgemma-lsp]\n{table}")
    settings, problems = read_project(tmp_path, Settings())
    assert settings == Settings()
    assert [problem.split("'")[1] for problem in problems] == [
        "engine",
        "engineKeyVariable",
        "engineUrl",
    ]


def test_what_the_engine_is_built_from() -> None:
    """Another model, device or place needs another engine; anything else does not."""
    chosen = engine_choice(Settings())
    for change in ({"model": "m"}, {"device": "cpu"}, {"engine": "shared"}, {"engineUrl": "u"}):
        settings, problems = read_settings(change, Settings())
        assert problems == []
        assert engine_choice(settings) != chosen
    assert engine_choice(Settings(max_tokens=9, seed=3)) == chosen


@pytest.mark.parametrize("content", ["", "[tool]\n", "[tool.other]\nx = 1\n", None])
def test_a_project_without_the_table_sets_nothing(tmp_path: Path, content: str | None) -> None:
    """No file, no table: no word of it."""
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    assert read_project(tmp_path, Settings()) == (Settings(), [])


@pytest.mark.parametrize("content", ["[tool", "[tool]\ndgemma-lsp = 3\n"])
def test_a_project_that_cannot_be_read_is_told(tmp_path: Path, content: str) -> None:
    """One sentence that names the file."""
    path = tmp_path / "pyproject.toml"
    path.write_text(content)
    settings, (problem,) = read_project(tmp_path, Settings())
    assert settings == Settings()
    assert str(path) in problem
