"""From a snapshot and a hole to the text that is offered, or to the reason why none is.

The one path that every feature takes: context, scheduler, filters. It knows no LSP request; the
features turn its outcome into one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

from dgemma_engine.errors import Cancelled
from dgemma_engine.types import Decoder

from .context import ContextBudget, build_request
from .document import DocumentSnapshot
from .hole import Hole
from .postprocess import Rejection, RejectReason, confident_start, postprocess
from .scheduler import FillScheduler
from .settings import Settings

logger = logging.getLogger(__name__)


class Filler:
    """Fills holes with one scheduler, and counts what was not offered.

    Attributes:
        rejections: how often each reason came.
    """

    def __init__(self, scheduler: FillScheduler) -> None:
        self.scheduler = scheduler
        self.rejections: Counter[RejectReason] = Counter()

    async def fill(
        self,
        snapshot: DocumentSnapshot,
        hole: Hole,
        settings: Settings,
        *,
        while_typing: bool,
    ) -> str | Rejection:
        """Fill a hole and judge the result.

        Args:
            while_typing: a later one of the same document takes this one's place, there is a
                deadline, and only what the model is sure of is offered; otherwise the user asked
                for this fill and gets it.
        Raises:
            EngineLoadFailed: there is no engine.
            DGemmaError: as the engine raises, `Cancelled` excepted.
        """
        request = build_request(
            snapshot,
            hole,
            ContextBudget(settings.prefix_chars, settings.suffix_chars),
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
        request = dataclasses.replace(request, decoder=Decoder(settings.decoder))
        has_deadline = while_typing and settings.deadline_ms > 0
        try:
            result = await self.scheduler.fill(
                request,
                document=snapshot.uri if while_typing else None,
                time_limit=settings.deadline_ms / 1000 if has_deadline else None,
            )
        except Cancelled as error:
            return self.count(Rejection(RejectReason.CANCELLED, str(error)))
        logger.info(
            "%s fill: %d passes, %.0f ms, %s",
            hole.kind.value,
            result.num_passes,
            result.timings.total_ms,
            result.stop_reason.value,
        )
        outcome: str | Rejection = result.text
        if while_typing:
            outcome = confident_start(result, self._threshold(settings))
        if isinstance(outcome, str):
            outcome = postprocess(snapshot, hole, outcome)
        return self.count(outcome) if isinstance(outcome, Rejection) else outcome

    def _threshold(self, settings: Settings) -> float:
        if settings.min_confidence is not None:
            return settings.min_confidence / 100
        info = self.scheduler.info
        return info.confidence_threshold if info is not None else 0.0

    def count(self, rejection: Rejection) -> Rejection:
        """Count and log a rejection."""
        self.rejections[rejection.reason] += 1
        logger.info("nothing offered: %s (%s)", rejection.reason.value, rejection.detail)
        return rejection
