"""The pages for users and for authors of clients say what the code does."""

from __future__ import annotations

from pathlib import Path

from lsprotocol import types

from dgemma_engine.types import DraftStep, DraftToken
from dgemma_lsp.postprocess import RejectReason
from dgemma_lsp.protocol import CanvasParams, OptIns, StatusParams
from dgemma_lsp.settings import settings_page

from .clients import COMMANDS_TO_EDIT

EDITORS = Path(__file__).parents[2] / "editors"


def test_the_page_of_settings_is_up_to_date() -> None:
    """If not: python -m dgemma_lsp.settings > editors/SETTINGS.md"""
    assert settings_page() == (EDITORS / "SETTINGS.md").read_text(encoding="utf-8")


def test_the_page_of_the_protocol_names_everything() -> None:
    """Every key, command, reason and capability."""
    page = (EDITORS / "PROTOCOL.md").read_text(encoding="utf-8")
    status = StatusParams("ready", "", None, None, None, None, 0, {}).to_json()
    place = types.Position(0, 0)
    step = DraftStep(0, 1, "x", (DraftToken("x", 1.0, True),), 0.0)
    canvas = CanvasParams("", 0, 1, types.Range(place, place), step, done=True).to_json()
    names = [*status, *canvas, *canvas["tokens"][0], *COMMANDS_TO_EDIT["commands"]]
    names += [reason.value for reason in RejectReason]
    missing = [name for name in names if f"`{name}`" not in page]
    missing += [name for name in OptIns.__slots__ if f'"{name}": true' not in page]
    assert not missing
