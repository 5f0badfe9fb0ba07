"""What an action, a command or a completion item does: fills that were asked for, as one edit.

A `FillTarget` says which, and travels to the client and back as JSON; `compute_edit` does it. What
goes wrong here is told, for somebody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lsprotocol import converters, types
from pygls.exceptions import JsonRpcContentModified, JsonRpcInvalidParams

from dgemma_engine.errors import DGemmaError, HolesTooFarApart
from dgemma_engine.types import DraftStep

from ..convert import to_workspace_edit
from ..document import DocumentSnapshot
from ..fill import Draft, in_place_of, in_places_of
from ..hole import Hole, body_hole, docstring_hole, find_holes, select_hole, selection_hole
from ..postprocess import Rejection, RejectReason
from ..rpc import RequestFailed
from ..settings import Settings
from . import status
from .watch import Watch, watching

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

_converter = converters.get_converter()


class Task(str, Enum):
    """What can be asked for; the value is the end of the command's name."""

    FILL = "fill"  # at a cursor, or in the place of a selection
    FILL_ALL = "fillAll"  # everything unfinished in a selection, or in the document
    IMPLEMENT = "implement"  # the unfinished body around the cursor
    DOCSTRING = "docstring"  # of the definition around the cursor
    REWRITE = "rewrite"  # a selection, beginning with what it holds

    @property
    def command(self) -> str:
        return f"dgemma.{self.value}"


TITLES = {
    Task.FILL: "Fill here",
    Task.FILL_ALL: "Fill all holes",
    Task.IMPLEMENT: "Implement the body",
    Task.DOCSTRING: "Write the docstring",
    Task.REWRITE: "Rewrite selection",
}


@dataclass(frozen=True, slots=True)
class FillTarget:
    """What to do, and where.

    Attributes:
        uri: of the document.
        range: empty at a cursor, else the selection.
        version: of the document the range belongs to; None to take it as it is.
        checksum: of the text the range belongs to, for a document that was reopened counts its
            versions anew; None where nobody knows.
        strength: of a rewrite, 0 .. 1; None for the setting's.
    """

    uri: str
    range: types.Range
    version: int | None = None
    checksum: int | None = None
    task: Task = Task.FILL
    strength: float | None = None

    def to_json(self) -> dict[str, Any]:
        made = {
            "task": self.task.value,
            "uri": self.uri,
            "range": _converter.unstructure(self.range),
            "version": self.version,
            "checksum": self.checksum,
            "strength": self.strength,
        }
        return {key: value for key, value in made.items() if value is not None}

    @classmethod
    def from_json(cls, data: Any, task: Task | None = None) -> FillTarget:
        """Read what `to_json` gave, or what a key binding of the user sends.

        Args:
            task: of a command that is about one task only.
        Raises:
            JsonRpcInvalidParams: it is neither.
        """
        try:
            uri, version, checksum = data["uri"], data.get("version"), data.get("checksum")
            span = data.get("range")
            if span is None and task is Task.FILL_ALL:
                span = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 0}}
            made = cls(
                uri,
                _converter.structure(span, types.Range),
                version,
                checksum,
                task or Task(data.get("task", Task.FILL.value)),
                data.get("strength"),
            )
        except Exception as error:
            raise JsonRpcInvalidParams("a fill needs {uri, range, version?}") from error
        if not isinstance(uri, str) or not isinstance(version, int | None):
            raise JsonRpcInvalidParams("a fill needs a text as uri and a number as version")
        strength = made.strength
        if strength is not None and not (isinstance(strength, int | float) and 0 < strength <= 1):
            raise JsonRpcInvalidParams(f"strength must be above 0 and at most 1, got {strength!r}")
        return made


def checksum(text: str) -> int:
    """Tells two texts of one version apart."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


async def compute_edit(
    server: DGemmaServer, target: FillTarget, token: types.ProgressToken | None = None
) -> types.WorkspaceEdit | None:
    """The edit that does what the user asked for; None, and a message, if there is nothing to do.

    Args:
        token: of the progress that the client shows, None for one of ours.
    Raises:
        JsonRpcContentModified: the document is not the one the action was offered for.
        RequestFailed: there is no engine, or it refused; the user has been told.
    """
    snapshot = server.snapshot(target.uri)
    _check_unchanged(target.version, target.checksum, snapshot)
    settings = await server.settled_settings()
    if (off := server.why_off(snapshot)) is not None:
        server.filler.count(snapshot, off)
        server.tell(types.MessageType.Info, f"nothing was filled in: {off.detail}")
        return None
    try:
        async with watching(server, TITLES[target.task], token) as watch:
            fills = await _fills(server, snapshot, target, settings, watch)
    except DGemmaError as error:
        server.tell(types.MessageType.Error, str(error))
        raise RequestFailed(str(error)) from error
    except Exception as error:
        logger.exception("a fill that was asked for failed")
        message = f"the fill failed ({type(error).__name__}); the server's log has more"
        server.tell(types.MessageType.Error, message)
        raise RequestFailed(message) from error
    finally:
        status.tell(server)
    if isinstance(fills, Rejection):
        server.tell(types.MessageType.Info, f"nothing was filled in: {fills.detail}")
        return None
    now = server.snapshot(target.uri)
    _check_unchanged(snapshot.version, None, now)
    if snapshot.text != now.text:
        # Closed and opened again: versions begin anew.
        raise JsonRpcContentModified("the document was reopened; ask for the action again")
    info = server.filler.scheduler.status.info
    author = info.model if info is not None else "the model"
    return to_workspace_edit(
        snapshot, fills, server.encoding, server.client_capabilities, author=author
    )


async def _fills(
    server: DGemmaServer,
    snapshot: DocumentSnapshot,
    target: FillTarget,
    settings: Settings,
    watch: Watch,
) -> list[tuple[Hole, str]] | Rejection:
    start = snapshot.offset_at(target.range.start, server.encoding)
    end = snapshot.offset_at(target.range.end, server.encoding)
    await snapshot.syntax.ready()  # somebody waits for it anyway
    if target.task is Task.FILL_ALL:
        everywhere = (start, end) if start < end else (0, len(snapshot.text))
        # 0.3 s for 50,000 lines.
        holes = await asyncio.to_thread(find_holes, snapshot, *everywhere)
        return await _fill_all(server, snapshot, holes, settings, watch)
    hole = _HOLES[target.task](snapshot, start, end)
    if hole is None:
        detail = f"there is nothing to do at this place ({TITLES[target.task].lower()})"
        return server.filler.count(snapshot, Rejection(RejectReason.EMPTY, detail))
    draft = None
    if target.task is Task.REWRITE:
        strength = target.strength or settings.rewrite_strength / 100
        draft = Draft(snapshot.text[hole.start : hole.end], strength)
    async with watch.of(snapshot, hole) as on_step:
        outcome = await server.filler.fill(
            snapshot, hole, settings, while_typing=False, draft=draft, on_step=on_step
        )
    return outcome if isinstance(outcome, Rejection) else [(hole, outcome)]


def _hole_of_fill(snapshot: DocumentSnapshot, start: int, end: int) -> Hole:
    if start == end:
        return select_hole(snapshot, start, cover_marker=True)
    return selection_hole(snapshot, start, end)


def _hole_of_rewrite(snapshot: DocumentSnapshot, start: int, end: int) -> Hole | None:
    return selection_hole(snapshot, start, end) if start < end else None


_HOLES: dict[Task, Callable[[DocumentSnapshot, int, int], Hole | None]] = {
    Task.FILL: _hole_of_fill,
    Task.IMPLEMENT: lambda snapshot, start, _: body_hole(snapshot, start),
    Task.DOCSTRING: lambda snapshot, start, _: docstring_hole(snapshot, start),
    Task.REWRITE: _hole_of_rewrite,
}


async def _fill_all(
    server: DGemmaServer,
    snapshot: DocumentSnapshot,
    holes: list[Hole],
    settings: Settings,
    watch: Watch,
) -> list[tuple[Hole, str]] | Rejection:
    """Fill holes so that each is written with the others' texts in place.

    Twice: the first time the later ones are still open; then all are denoised again, those near one
    another together on one canvas, each of the others beside what all have become.
    """
    if not holes:
        detail = "there is nothing unfinished here (a body of `...`, `pass` or TODO, or a marker)"
        return server.filler.count(snapshot, Rejection(RejectReason.EMPTY, detail))
    texts: dict[int, str] = {}
    filling = _FillAll(server, snapshot, holes, settings, watch, texts)
    for index in range(len(holes)):
        await filling.fill(index)
    if not texts:
        return Rejection(RejectReason.EMPTY, "the model has nothing to offer for any of the holes")
    if len(holes) > 1:
        await filling.revise(sorted(texts))
    if len(texts) < len(holes):
        server.tell(types.MessageType.Info, f"{len(texts)} of {len(holes)} holes were filled in")
    return [(holes[index], text) for index, text in sorted(texts.items())]


@dataclass(frozen=True, slots=True)
class _FillAll:
    """Holes that are filled beside one another; `texts`, by their indices, grows."""

    server: DGemmaServer
    snapshot: DocumentSnapshot
    holes: list[Hole]
    settings: Settings
    watch: Watch
    texts: dict[int, str]

    async def fill(self, index: int) -> None:
        """Fill one hole, from its text if it has one, the others' in place."""
        count = len(self.holes)
        self.watch.name(f"{index + 1} of {count}" if count > 1 else "")
        draft = None
        if index in self.texts:
            draft = Draft(self.texts[index], self.settings.rewrite_strength / 100)
        present, moved = in_place_of(self.snapshot, self.holes, self.texts, index)
        async with self.watch.of(self.snapshot, self.holes[index]) as on_step:
            outcome = await self.server.filler.fill(
                present, moved, self.settings, while_typing=False, draft=draft, on_step=on_step
            )
        if isinstance(outcome, str):
            self.texts[index] = outcome

    async def revise(self, indices: list[int]) -> None:
        """Revise the texts of some holes, on as few canvases as hold them."""
        if len(indices) == 1 or not self.server.filler.fills_together:
            for index in indices:
                await self.fill(index)
            return
        try:
            await self._revise_together(indices)
        except HolesTooFarApart:
            holes = self.holes
            gaps = [holes[after].start - holes[index].end for index, after in pairwise(indices)]
            middle = gaps.index(max(gaps)) + 1
            await self.revise(indices[:middle])
            await self.revise(indices[middle:])

    async def _revise_together(self, indices: list[int]) -> None:
        self.watch.name(f"{len(indices)} together")
        others = {index: text for index, text in self.texts.items() if index not in indices}
        present, moved = in_places_of(self.snapshot, self.holes, others, indices)
        async with AsyncExitStack() as stack:
            shows = [
                await stack.enter_async_context(self.watch.of(self.snapshot, self.holes[index]))
                for index in indices
            ]

            def show(steps: tuple[DraftStep, ...]) -> None:
                for on_step, step in zip(shows, steps, strict=True):
                    if on_step is not None:
                        on_step(step)

            drafts = [self.texts[index] for index in indices]
            revised = await self.server.filler.revise_together(
                present, moved, drafts, self.settings, show
            )
        self.texts.update(zip(indices, revised, strict=True))


def _check_unchanged(version: int | None, text: int | None, now: DocumentSnapshot) -> None:
    if version is not None and version != now.version:
        raise JsonRpcContentModified(
            f"the document changed (version {version} then, {now.version} now); "
            "ask for the action again"
        )
    if text is not None and text != checksum(now.text):
        raise JsonRpcContentModified("the document was reopened; ask for the action again")
