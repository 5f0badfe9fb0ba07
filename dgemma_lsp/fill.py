"""From a snapshot and a hole to the text that is offered, or to the reason why none is.

The one path that every feature takes: context, then what `attempts.py` tries, by the scheduler. It
knows no LSP request; the features turn its outcome into one. Every outcome is counted, and the last
one of each document can be explained.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dgemma_engine.errors import Cancelled, DGemmaError
from dgemma_engine.types import Decoder, InfillRequest, InfillResult, OnJointStep, OnStep

from .attempts import Attempt, attempts_at, make_attempts
from .context import ContextBudget, build_joint_request, build_request
from .document import DocumentSnapshot
from .hole import Hole
from .postprocess import Rejection, RejectReason, first_that_fits
from .scheduler import EngineLoadFailed, FillScheduler
from .settings import Settings

logger = logging.getLogger(__name__)

FindRelated = Callable[[DocumentSnapshot, Hole, Settings], str]
FindNearby = Callable[[DocumentSnapshot, Hole, Settings], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What came of the last fill in a document: a reason, and a sentence without code."""

    reason: str
    detail: str


class Filler:
    """Fills holes with one scheduler, and keeps account of what was offered and what was not.

    Args:
        scheduler: before the engine.
        find_related: text from elsewhere that the model reads before the prefix; see `related.py`.
        find_nearby: texts that it may recall from; see `nearby.py`.

    Attributes:
        num_shown: fills that were offered.
        rejections: how often each reason came.
        last_latency_ms: of the last fill that was offered.
        last_engine_ms: of it, the engine's part; None where it was not asked.
        explanations: of the last fill of each document, by URI; "" has the last of all.
    """

    def __init__(
        self,
        scheduler: FillScheduler,
        find_related: FindRelated = lambda *_: "",
        find_nearby: FindNearby = lambda *_: (),
    ) -> None:
        self.scheduler = scheduler
        self._find_related = find_related
        self._find_nearby = find_nearby
        self.num_shown = 0
        self.rejections: Counter[RejectReason] = Counter()
        self.last_latency_ms: float | None = None
        self.last_engine_ms: float | None = None
        self.explanations: dict[str, Explanation] = {}

    def request(self, snapshot: DocumentSnapshot, hole: Hole, settings: Settings) -> InfillRequest:
        """What the engine is asked for a hole."""
        request = build_request(
            snapshot,
            hole,
            ContextBudget(settings.prefix_chars, settings.suffix_chars),
            related=self._find_related(snapshot, hole, settings),
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
        return dataclasses.replace(
            request,
            decoder=Decoder(settings.decoder),
            max_steps=settings.passes,
            nearby=self._find_nearby(snapshot, hole, settings) if self.recalls else (),
        )

    async def fill(
        self,
        snapshot: DocumentSnapshot,
        hole: Hole,
        settings: Settings,
        *,
        while_typing: bool,
        draft: Draft | None = None,
        on_step: OnStep | None = None,
    ) -> str | Rejection:
        """Fill a hole and judge the result.

        Args:
            while_typing: a later one of the same document takes this one's place, there is a
                deadline, and only what the model is sure of is offered; otherwise the user asked
                for this fill and gets it.
            draft: a text to begin with, in the place of noise.
            on_step: called after every pass, on the event loop's thread.
        Raises:
            EngineLoadFailed: there is no engine.
            DGemmaError: as the engine raises, `Cancelled` excepted.
        """
        texts = await self.fill_several(
            snapshot, hole, settings, 1, while_typing=while_typing, draft=draft, on_step=on_step
        )
        return texts if isinstance(texts, Rejection) else texts[0]

    async def fill_several(
        self,
        snapshot: DocumentSnapshot,
        hole: Hole,
        settings: Settings,
        most: int,
        *,
        while_typing: bool,
        draft: Draft | None = None,
        on_step: OnStep | None = None,
    ) -> list[str] | Rejection:
        """As `fill`, and other texts besides, as far as the engine knows them.

        Returns:
            different ones, the best first, `most` at most.
        """
        started = time.monotonic()
        # Not all of the others may fit.
        request = dataclasses.replace(
            self.request(snapshot, hole, settings), num_alternatives=most - 1 + most // 2
        )
        find_threshold, seconds = None, math.inf
        if while_typing:
            find_threshold = partial(self._threshold, settings)
            request = dataclasses.replace(request, least_confidence=find_threshold())
            seconds = settings.deadline_ms / 1000 or math.inf
        if draft is not None:
            request = dataclasses.replace(request, draft=draft.text, strength=draft.strength)

        async def fill(attempt: Attempt) -> InfillResult:
            result = await self.scheduler.fill(
                attempt.request,
                document=snapshot.uri,
                while_typing=while_typing,
                time_limit=attempt.seconds if math.isfinite(attempt.seconds) else None,
                on_step=on_step if attempt.is_shown else None,
            )
            _log(hole, result)
            return result

        attempts = attempts_at(snapshot, hole, request, settings.repairs, find_threshold, seconds)
        try:
            offer, result = await make_attempts(attempts, fill)
        except Cancelled as error:
            return self.count(snapshot, Rejection(RejectReason.CANCELLED, str(error)))
        except EngineLoadFailed as error:
            self.count(snapshot, Rejection(RejectReason.NO_ENGINE, str(error)))
            raise
        except DGemmaError as error:
            self.count(snapshot, Rejection(RejectReason.FAILED, str(error)))
            raise
        if isinstance(offer, Rejection):
            return self.count(snapshot, offer)
        elapsed = (time.monotonic() - started) * 1000
        how = f"filled in {elapsed:.0f} ms"
        self.count_shown(snapshot, how, elapsed, result.timings.total_ms)
        return offer[:most]

    async def revise_together(
        self,
        snapshot: DocumentSnapshot,
        holes: Sequence[Hole],
        drafts: Sequence[str],
        settings: Settings,
        on_step: OnJointStep | None = None,
    ) -> list[str]:
        """Denoise the drafts of several holes again, all on one canvas, and judge each result.

        Args:
            snapshot: the document without the drafts.
            holes: in the order of the text.
        Returns:
            a text for each hole: what came, or its draft where that would not be sound in place.
        Raises:
            HolesTooFarApart: they do not fit on one canvas.
            EngineLoadFailed, DGemmaError: as `fill`; also of an engine that cannot do this.
        """
        request = build_joint_request(
            snapshot,
            holes,
            drafts,
            settings.rewrite_strength / 100,
            ContextBudget(settings.prefix_chars, settings.suffix_chars),
            related=self._find_related(snapshot, holes[0], settings),
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
        request = dataclasses.replace(request, max_steps=settings.passes)
        started = time.monotonic()
        result = await self.scheduler.fill_together(request, document=snapshot.uri, on_step=on_step)
        texts = list(drafts)
        for index, text in enumerate(result.texts):
            present, moved = in_place_of(snapshot, holes, dict(enumerate(texts)), index)
            outcome = first_that_fits(present, moved, [text], text)
            if isinstance(outcome, str):
                texts[index] = outcome
        elapsed = (time.monotonic() - started) * 1000
        logger.info(
            "%d holes together: %d passes, %.0f ms, %s",
            len(holes),
            result.num_passes,
            elapsed,
            result.stop_reason.value,
        )
        return texts

    def _threshold(self, settings: Settings) -> float:
        if settings.min_confidence is not None:
            return settings.min_confidence / 100
        info = self.scheduler.status.info
        return info.confidence_threshold if info is not None else 0.0

    @property
    def fills_together(self) -> bool:
        """Whether the engine that is loaded can fill several holes on one canvas."""
        info = self.scheduler.status.info
        return info is not None and info.fills_together

    @property
    def recalls(self) -> bool:
        """Whether the engine that is loaded recalls from texts nearby."""
        info = self.scheduler.status.info
        return info is not None and info.recalls

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the model which is loaded was trained on; none where nobody knows."""
        info = self.scheduler.status.info
        return info.languages if info is not None else ()

    def count_shown(
        self,
        snapshot: DocumentSnapshot,
        how: str,
        latency_ms: float,
        engine_ms: float | None = None,
    ) -> None:
        """Count something that was offered."""
        self.num_shown += 1
        self.last_latency_ms, self.last_engine_ms = latency_ms, engine_ms
        self._explain(snapshot.uri, Explanation("shown", how))

    def count(self, snapshot: DocumentSnapshot, rejection: Rejection) -> Rejection:
        """Count and log a rejection."""
        self.rejections[rejection.reason] += 1
        logger.info("nothing offered: %s (%s)", rejection.reason.value, rejection.detail)
        self._explain(snapshot.uri, Explanation(rejection.reason.value, rejection.detail))
        return rejection

    def forget(self, uri: str) -> None:
        """A document was closed: withdraw what runs for it while typing."""
        self.scheduler.withdraw(uri, "the document was closed")
        self.explanations.pop(uri, None)

    def _explain(self, uri: str, explanation: Explanation) -> None:
        self.explanations[uri] = self.explanations[""] = explanation


@dataclass(frozen=True, slots=True)
class Draft:
    """A text that is revised: `strength` is the share of its tokens that may change, 0 .. 1."""

    text: str
    strength: float


def in_place_of(
    snapshot: DocumentSnapshot, holes: Sequence[Hole], texts: Mapping[int, str], open_index: int
) -> tuple[DocumentSnapshot, Hole]:
    """As `in_places_of`, with one hole left open."""
    present, (moved,) = in_places_of(snapshot, holes, texts, [open_index])
    return present, moved


def in_places_of(
    snapshot: DocumentSnapshot,
    holes: Sequence[Hole],
    texts: Mapping[int, str],
    open_indices: Sequence[int],
) -> tuple[DocumentSnapshot, list[Hole]]:
    """The document with texts in its holes but in some, and these in it.

    Args:
        holes: in the order of the text.
        texts: by the holes' indices; the others stay as they are.
        open_indices: of the holes that are left open.
    """
    parts: list[str] = []
    end, length = 0, 0
    moved: list[Hole] = []
    for index, hole in enumerate(holes):
        parts.append(snapshot.text[end : hole.start])
        length += hole.start - end
        covered = snapshot.text[hole.start : hole.end]
        if index in open_indices:
            moved.append(dataclasses.replace(hole, start=length, end=length + len(covered)))
        elif index in texts:
            covered = hole.before + texts[index].replace("\n", snapshot.eol) + hole.after
        parts.append(covered)
        length += len(covered)
        end = hole.end
    text = "".join(parts) + snapshot.text[end:]
    present = DocumentSnapshot(snapshot.uri, snapshot.version, snapshot.language_id, text)
    return present, moved


def _log(hole: Hole, result: InfillResult) -> None:
    logger.info(
        "%s fill: %d passes, %.0f ms, %s",
        hole.kind.value,
        result.num_passes,
        result.timings.total_ms,
        result.stop_reason.value,
    )
