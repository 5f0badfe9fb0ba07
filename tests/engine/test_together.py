"""Several holes on one canvas: the layout, what each may hold, and that no draft gets worse."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    DraftStep,
    EngineInfo,
    HoleKind,
    HolesTooFarApart,
    JointRequest,
    RequestError,
    load_engine,
)
from dgemma_engine.canvas import (
    EOM_ID,
    MID_ID,
    PAD_ID,
    SUF_ID,
    Canvas,
    marked_canvas,
    marked_canvas_of_several,
)
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.process import EngineProcess
from dgemma_engine.stopping import StableText

from .tiny import CHAT_TOKENS, SAMPLE, save_checkpoint

LINES = (HoleKind.LINE, HoleKind.LINE)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("tiny"))))


def joint_request(**changes: object) -> JointRequest:
    """The two values of `Point.__init__`, the second cut in the middle of a word."""
    first, second = SAMPLE.index("x\n        self.y"), SAMPLE.index("y\nfor")
    texts = (SAMPLE[:first], SAMPLE[first + 1 : second - 3], SAMPLE[second + 1 :])
    request = JointRequest(texts, LINES, language_id="python", max_tokens=40)
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def test_the_layout_of_one_hole_is_that_of_several() -> None:
    """Marker, slots, [suf] and text for each; the last text is cut, or padded, to the canvas."""
    token_ids, holes = marked_canvas_of_several([2, 1], [[50, 51], [60, 61, 62]], 12)
    expected = [MID_ID, PAD_ID, PAD_ID, SUF_ID, 50, 51, MID_ID, PAD_ID, SUF_ID, 60, 61, 62]
    assert expected == token_ids
    assert holes == [-1, 0, 0, -1, -1, -1, -1, 1, -1, -1, -1, -1]
    assert marked_canvas_of_several([2, 1], [[50, 51], [60, 61, 62]], 10)[0] == expected[:10]
    padded, holes = marked_canvas_of_several([2], [[50]], 8)
    assert padded == [MID_ID, PAD_ID, PAD_ID, SUF_ID, 50, PAD_ID, PAD_ID, PAD_ID]
    assert marked_canvas(2, [50], 8) == (padded, [hole == 0 for hole in holes])


def test_every_hole_has_a_first_slot_of_its_own() -> None:
    """What the text before a hole's cut demands is demanded there, wherever the slots are read."""
    hole_mask = torch.tensor([[False, True, True, False, True, True]])
    starts = torch.tensor([[0, 1, 0, 0, 2, 0]])
    first_allowed = torch.zeros(2, 5, dtype=torch.bool)
    first_allowed[0, 3] = first_allowed[1, 4] = True
    canvas = Canvas(
        torch.zeros(1, 6, dtype=torch.int64), hole_mask, None, first_allowed, starts=starts
    )
    logits = torch.zeros(1, 6, 5)
    finite = canvas.restrict(logits).isfinite()[0]
    assert finite[1].tolist() == [False, False, False, True, False]
    assert finite[4].tolist() == [False, False, False, False, True]
    assert bool(finite[[2, 5]].all())
    slots = canvas.hole_slots()
    part = canvas.part(slots).restrict(logits[:, :4]).isfinite()[0]
    assert torch.equal(part, finite[slots[0]])


def test_every_hole_has_an_end_of_its_own() -> None:
    """Noise behind one hole's end mark is ignored; a change in the next hole is not."""
    hole = torch.tensor([[True, True, True, False, True, True]])
    criterion = StableText(1, [EOM_ID])
    entropy = torch.zeros(1, 6)
    canvases = [
        [4, EOM_ID, 1, 9, 5, EOM_ID],
        [4, EOM_ID, 2, 9, 6, EOM_ID],
        [4, EOM_ID, 3, 9, 6, EOM_ID],
    ]
    met = [criterion(torch.tensor([row]), entropy, hole).item() for row in canvases]
    assert met == [False, False, True]


def test_a_request_says_what_does_not_belong_together() -> None:
    """With the numbers."""
    with pytest.raises(RequestError, match="2 holes need one text more than that, got 2"):
        JointRequest(("a", "b"), LINES)
    with pytest.raises(RequestError, match="2 holes got 1 drafts"):
        JointRequest(("a", "b", "c"), LINES, ("x",))
    with pytest.raises(RequestError, match="max_tokens must be at least 1, got 0"):
        JointRequest(("a", "b", "c"), LINES, max_tokens=0)


def test_one_hole_of_several_sees_the_others_drafts() -> None:
    """As text before and after it."""
    request = JointRequest(("a", "b", "c"), LINES, ("x", "y"))
    first, second = request.hole(0), request.hole(1)
    assert (first.prefix, first.draft, first.suffix) == ("a", "x", "byc")
    assert (second.prefix, second.draft, second.suffix) == ("axb", "y", "c")


def test_a_seed_fixes_the_fills(engine: DiffusionEngine) -> None:
    """One text a hole, without line breaks; every pass shows all drafts."""
    steps: list[tuple[DraftStep, ...]] = []
    first = engine.fill_together(joint_request(seed=1), steps.append)
    again = engine.fill_together(joint_request(seed=1))
    other = engine.fill_together(joint_request(seed=2))
    assert first.texts == again.texts != other.texts
    assert len(first.texts) == len(first.confidences) == 2
    assert not any("\n" in text for text in first.texts)
    assert len(steps) == first.num_passes >= 1
    assert {len(step) for step in steps} == {2}
    assert tuple(step.text for step in steps[-1]) == first.texts


def test_what_is_around_the_holes_is_on_the_canvas(engine: DiffusionEngine) -> None:
    """The text between them, whole, but for the tokens that the cursors may have cut."""
    plan = engine.strategy.plan_together(joint_request())
    between = joint_request().texts[1].encode()
    holes = plan.holes.int()
    first_end, second_start = int(holes[0].nonzero().max()), int(holes[1].nonzero().min())
    clamped = plan.canvas.token_ids[0, first_end + 2 : second_start - 1].tolist()
    assert between == engine.tokenizer.decode_bytes(clamped) + plan.healed[1]
    assert plan.healed[1]
    assert not bool((holes.sum(0) > 1).any())


def test_drafts_stay_unless_something_fits_better(engine: DiffusionEngine) -> None:
    """The judge prefers no worse texts than the drafts, whatever the noise."""
    request = joint_request()
    plan = engine.strategy.plan_together(request)
    assert plan.judge is not None

    def score(texts: tuple[str, ...]) -> float:
        pieces = zip(texts, (request.texts[1], ""), strict=True)
        joined = "".join(itertools.chain(*pieces))
        return engine._judge.scores(plan.judge, [joined])[0]  # type: ignore[arg-type]

    drafts = ("x", "y")
    found = {
        engine.fill_together(joint_request(seed=seed, drafts=drafts, strength=0.5)).texts
        for seed in range(4)
    }
    assert all(score(texts) >= score(drafts) - 1e-4 for texts in found)


def test_holes_that_do_not_fit_are_refused(engine: DiffusionEngine) -> None:
    """With what is there and what would help."""
    before, _, after = joint_request().texts
    request = joint_request(texts=(before, "word = other\n" * 60, after))
    with pytest.raises(HolesTooFarApart, match="on a canvas of 128; ask for fewer at once"):
        engine.fill_together(request)
    with pytest.raises(HolesTooFarApart):
        engine.fill_together(joint_request(drafts=("word " * 60, "word " * 60)))


def test_it_is_cancelled(engine: DiffusionEngine) -> None:
    """Within one pass."""
    token = CancellationToken()
    steps = []

    def stop(step: tuple[DraftStep, ...]) -> None:
        steps.append(step)
        token.cancel()

    with pytest.raises(Cancelled):
        engine.fill_together(joint_request(max_steps=4), stop, token)
    assert len(steps) == 1


def test_other_strategies_say_that_they_cannot(tmp_path: Path) -> None:
    """And an engine says it beforehand."""
    chat = build_engine(str(save_checkpoint(tmp_path / "chat", CHAT_TOKENS)))
    assert not chat.info.fills_together
    with pytest.raises(RequestError, match="'chat' fills holes one by one only"):
        chat.fill_together(joint_request())


def test_a_process_does_the_same() -> None:
    """Same texts, steps of all holes; and what cannot be done is told."""
    request = dataclasses.replace(joint_request(), drafts=("x", "y"), strength=0.5)
    here, there = load_engine(), EngineProcess()
    steps: list[tuple[DraftStep, ...]] = []
    assert isinstance(here.info, EngineInfo)
    assert here.info.fills_together
    expected, actual = here.fill_together(request), there.fill_together(request, steps.append)
    assert expected.texts == actual.texts
    assert {len(step) for step in steps} == {2}
    with pytest.raises(HolesTooFarApart):
        there.fill_together(joint_request(texts=("a", "word = other\n" * 90, "b")))
    there.close()
