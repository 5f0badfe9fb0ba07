"""Texts of different lengths, compared by what they make of the suffix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dgemma_engine import Decoder, HoleKind
from dgemma_engine.canvas import EOM_ID, PAD_ID
from dgemma_engine.judge import Judge, JudgePrompt, length_posterior

from .test_left_to_right import joint_logits
from .tiny import engine_of
from .tiny import sample_request as request

CANDIDATES = (1, 2, 4, 6)


def test_scores_are_chains_over_text_and_suffix(tmp_path: Path) -> None:
    """Each text as if it were alone, in whatever company, on a warm cache as on a cold one.

    What is blank has no chance at all.
    """
    engine = engine_of(tmp_path)
    model, tokenizer = engine.model, engine.tokenizer
    prompt = JudgePrompt(list(range(100, 130)), "le", "right)\nreturn x\n")
    texts = ["ft", "ft + (", "", "ft + right"]
    judge = Judge(model, tokenizer)
    for _ in range(2):
        for text, actual in zip(texts, judge.scores(prompt, texts), strict=True):
            own = len(tokenizer.encode("le" + text))
            ids = tokenizer.encode("le" + text + prompt.suffix)[: own + 8]
            chances = joint_logits(model, prompt.prompt_ids + ids).log_softmax(-1)
            start = len(prompt.prompt_ids) - 1
            expected = sum(float(chances[start + i, token]) for i, token in enumerate(ids))
            assert actual == pytest.approx(expected if text else -math.inf, abs=1e-2)


def test_lengths_are_read_off_the_first_look() -> None:
    """The chance of a length is that of the text ending right before a slot."""
    logits = torch.full((4, 20), -30.0)
    for slot, has_ended in enumerate((0.1, 0.1, 0.6, 0.9)):
        half = torch.tensor(has_ended / 2).log()
        logits[slot, EOM_ID] = logits[slot, PAD_ID] = half
        logits[slot, 15] = torch.tensor(1 - has_ended).log()
    torch.testing.assert_close(
        length_posterior(logits), torch.tensor([0.1, 0.0, 0.5, 0.3]), atol=1e-5, rtol=1e-5
    )


def test_the_best_of_all_lengths_is_taken(tmp_path: Path) -> None:
    """Every candidate is drafted; the fill is the one that the judge prefers."""
    engine = engine_of(tmp_path, line_candidates=CANDIDATES)
    drafted: list[list[str]] = []
    judged = engine._judge.scores

    def watch(prompt: JudgePrompt, texts: list[str]) -> list[float]:
        drafted.append(list(texts))
        return judged(prompt, texts)

    engine._judge.scores = watch  # type: ignore[method-assign]
    result = engine.fill(request())
    (texts,) = drafted
    assert len(texts) == len(CANDIDATES)
    assert len(result.token_ids) in CANDIDATES
    scores = judged(engine.strategy.plan(request()).judge, texts)
    assert result.text == texts[scores.index(max(scores))]


def test_only_the_likeliest_lengths_are_drafted(tmp_path: Path) -> None:
    """With fewer drafts than candidates a first look chooses, and counts as a pass."""
    engine = engine_of(tmp_path, line_candidates=CANDIDATES, line_drafts=2)
    looks = []
    likely = engine._diffusion._likely_lengths

    def watch(*arguments: object) -> Any:
        looks.append((yield from likely(*arguments)))  # type: ignore[arg-type]
        return looks[-1]

    engine._diffusion._likely_lengths = watch  # type: ignore[method-assign]
    result = engine.fill(request(max_steps=2))
    assert len(looks[0]) == 2
    assert set(looks[0]) < set(CANDIDATES)
    assert len(result.token_ids) in looks[0]
    assert result.num_passes == 3


def test_only_the_promising_drafts_go_on(tmp_path: Path) -> None:
    """After the probe passes, those that the judge prefers, and the fill is one of them."""
    engine = engine_of(tmp_path, line_candidates=CANDIDATES, refined=2, probe_passes=2)
    counts: list[int] = []
    judged = engine._judge.scores

    def watch(prompt: JudgePrompt, texts: list[str]) -> list[float]:
        counts.append(len(texts))
        return judged(prompt, texts)

    engine._judge.scores = watch  # type: ignore[method-assign]
    rows = []
    result = engine.fill(request(), on_step=rows.append)
    assert counts == [len(CANDIDATES), 2]
    assert result.num_passes == len(rows)
    assert engine.fill(request()).text == result.text, "the same request, another fill"


def test_candidates_respect_the_request(tmp_path: Path) -> None:
    """No candidate beyond max_tokens; none for blocks; a known length needs none."""
    engine = engine_of(tmp_path, line_candidates=CANDIDATES, line_drafts=2)
    plan = engine.strategy.plan
    assert plan(request(max_tokens=4)).candidates == (1, 2, 4)
    assert plan(request(kind=HoleKind.BLOCK)).candidates == ()
    assert plan(request(num_tokens=5)).candidates == ()
    assert len(engine.fill(request(num_tokens=5)).token_ids) == 5


def test_a_fill_is_cut_where_the_line_goes_on(tmp_path: Path) -> None:
    """Left to right, in the middle of a line: the start that fits best before what follows."""
    engine = engine_of(tmp_path)
    at_end = request(suffix="\n    return 1\n", decoder=Decoder.LEFT_TO_RIGHT)
    # Starts of 5 to 20 tokens are compared; this judge prefers the fifth of them.
    engine._judge.scores = lambda prompt, texts: [float(i == 4) for i in range(len(texts))]
    whole = engine.fill(at_end)
    assert len(whole.token_ids) == 20, "at the end of a line nothing is cut"
    middle = engine.fill(request(suffix=") + 1\n", decoder=Decoder.LEFT_TO_RIGHT))
    assert len(middle.token_ids) == 9
    assert len(middle.prefix_confidences) == len(middle.token_ids)


def test_what_the_text_did_before_is_a_candidate(tmp_path: Path) -> None:
    """For lines, by default, and only where the judge prefers it."""
    engine = engine_of(tmp_path)
    prefix = "self.left = left\nself.top = top\nself.le"
    asked = request(prefix=prefix, suffix="\n")
    for preference, expected in (("ft = left", True), ("nothing", False)):
        engine._judge.scores = lambda prompt, texts, own=preference: [
            float(text == own) for text in texts
        ]
        result = engine.fill(asked)
        assert (result.text == "ft = left") == expected
        assert len(result.prefix_confidences) == len(result.token_ids) == len(result.token_ends)
    engine._judge.scores = lambda prompt, texts: [float(text == "ft = left") for text in texts]
    for decoder in (Decoder.DIFFUSION, Decoder.LEFT_TO_RIGHT):
        named = request(prefix=prefix, suffix="\n", decoder=decoder)
        assert engine.fill(named).text != "ft = left", "a named decoder is what it says"
