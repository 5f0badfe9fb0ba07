"""Settings: a bad value costs a sentence, never the others."""

from __future__ import annotations

import pytest

from dgemma_lsp.settings import Settings, read_settings


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
        ({"deadline": 5}, "unknown setting 'deadline'; known are model, device, maxTokens"),
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
