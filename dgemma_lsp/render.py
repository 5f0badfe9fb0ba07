"""What the command line shows: a fill in its place, and a canvas as it settles.

Styles say how sure the model is of each token. Knows rich, and nothing of files or engines.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dgemma_engine import DraftStep, DraftToken, InfillResult

from .context import to_lf

FILL_STYLE = "bold green"
_SURE, _LIKELY = 0.9, 0.5  # probabilities, 0 .. 1
_LINES_AROUND = 4


def token_style(token: DraftToken) -> str:
    """Green when sure, yellow when likely, faint when still noise."""
    if token.confidence >= _SURE:
        return "bold green" if token.is_accepted else "green"
    if token.confidence >= _LIKELY:
        return "yellow"
    return "bright_black italic"


def in_place(prefix: str, hole: Text, suffix: str, lines_around: int = _LINES_AROUND) -> Text:
    """The hole's text among the lines around it, with line numbers.

    Args:
        prefix: the file before the hole.
        hole: what stands in the hole, styled.
        suffix: the file after it.
        lines_around: how many lines to show above and below.
    """
    before = to_lf(prefix).split("\n")
    after = to_lf(suffix).split("\n")
    first_line = max(0, len(before) - 1 - lines_around)
    shown = Text("\n".join(before[first_line:]))
    shown.append_text(hole)
    shown.append("\n".join(after[: lines_around + 1]))
    numbered = Text()
    lines = shown.split("\n", allow_blank=True)
    width = len(str(first_line + len(lines)))
    for number, line in enumerate(lines, start=first_line + 1):
        numbered.append(f"{number:>{width}} │ ", style="bright_black")
        numbered.append_text(line)
        numbered.append("\n")
    numbered.rstrip()
    return numbered


def summary(result: InfillResult) -> str:
    """One line: passes, time, tokens as far as they are known, how sure, why it stopped."""
    sure = f"confidence {result.confidence:.0%}"
    if confidences := result.token_confidences:
        mean = sum(confidences) / len(confidences)
        sure = f"{len(confidences)} tokens, mean confidence {mean:.0%}"
    return (
        f"{result.num_passes} passes, {result.timings.total_ms:.0f} ms, {sure}, "
        f"stopped: {result.stop_reason.value}"
    )


class CanvasView:
    """Shows each denoising step: in place on a terminal, a line a step elsewhere."""

    def __init__(self, console: Console, prefix: str, suffix: str) -> None:
        self._console = console
        self._prefix = prefix
        self._suffix = suffix
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> CanvasView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, step: DraftStep) -> None:
        """Show one step; called by the engine after each pass."""
        hole = Text.assemble(*((token.text, token_style(token)) for token in step.tokens))
        num_accepted = sum(token.is_accepted for token in step.tokens)
        caption = (
            f"pass {step.step + 1} of at most {step.max_steps}: {num_accepted} of "
            f"{len(step.tokens)} tokens accepted, mean entropy {step.mean_entropy:.2f} nats"
        )
        if self._console.is_terminal:
            body = in_place(self._prefix, hole, self._suffix)
            self._live.update(Group(body, Text(caption, style="cyan")), refresh=True)
        else:
            self._console.print(Text(f"{caption}: {step.text!r}"))
