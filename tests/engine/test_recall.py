"""What the text did before has a vote: which places, how much they weigh, what stays forbidden."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from dgemma_engine import CheckpointError, Decoder, HoleKind, InfillRequest
from dgemma_engine.chains import CausalRules
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.recall import END, Recall, RecallWeights, Recollection
from dgemma_engine.strategies.plan import token_mask

from .tiny import save_checkpoint

WEIGHTS = RecallWeights(
    length=2.0, distance=0.3, bias=-2.0, match=0.8, agreement=2.0, certainty=-1.5
)
# Nothing but the memory counts.
CERTAIN = RecallWeights(
    length=2.0, distance=0.3, bias=40.0, match=0.0, agreement=0.0, certainty=0.0
)
V = 64
BANNED, NEWLINE = 0, 1


@pytest.fixture(scope="module")
def engine() -> DiffusionEngine:
    return build_engine("default", device="cpu")


def mask(*token_ids: int) -> torch.Tensor:
    return token_mask(token_ids, V, torch.device("cpu"))


def rules(first_allowed: torch.Tensor | None = None) -> CausalRules:
    return CausalRules(mask(BANNED), mask(NEWLINE), first_allowed)


def recollection(
    before: list[int],
    after: list[int] | None = None,
    elsewhere: list[list[int]] | None = None,
    weights: RecallWeights = WEIGHTS,
) -> Recollection:
    texts = [torch.tensor([*text, -1], dtype=torch.int32).numpy() for text in elsewhere or []]
    return Recollection(weights, texts, after or [], before, rules())


def flat() -> tuple[torch.Tensor, torch.Tensor]:
    """A model without an opinion."""
    going_on, end = rules().log_probabilities(torch.zeros(1, V), is_first=False)
    return going_on[0], end[0]


def test_what_followed_the_longest_match_has_most_votes() -> None:
    before = [5, 6, 7, 20, 9, 6, 7, 21, 8, 5, 6, 7]  # "5 6 7" went on with 20, "6 7" with 21
    votes = recollection(before).votes([], *flat())
    assert votes is not None
    found = dict(zip(votes.token_ids.tolist(), votes.lengths.tolist(), strict=True))
    assert found == {20: 3, 21: 2}
    going_on, _ = recollection(before).mixed([], *flat())
    assert going_on[20] > going_on[21] > going_on[22]


def test_what_was_written_is_part_of_the_text() -> None:
    own = recollection([5, 6, 7, 8, 30, 5])
    votes = own.votes([6], *flat())
    assert votes is not None
    assert votes.token_ids.tolist() == [7]
    assert votes.lengths.tolist() == [2]


def test_places_are_found_before_behind_and_elsewhere_the_nearer_the_heavier() -> None:
    own = recollection([5, 20, 9, 5], after=[5, 21], elsewhere=[[5, 22], [5, 23]])
    votes = own.votes([], *flat())
    assert votes is not None
    assert set(votes.token_ids.tolist()) == {20, 21, 22, 23}
    going_on, _ = own.mixed([], *flat())
    assert going_on[20] > going_on[22]
    assert going_on[21] > going_on[22]
    assert going_on[22] == going_on[23]


def test_a_match_does_not_reach_across_two_texts() -> None:
    own = recollection([6, 7], elsewhere=[[5, 6], [7, 30]])
    votes = own.votes([], *flat())
    assert votes is not None
    assert votes.lengths.tolist() == [1], "6 ends one text and 7 begins another"


def test_the_end_of_a_text_has_no_vote() -> None:
    assert recollection([6, 7], elsewhere=[[5, 7]]).votes([], *flat()) is None


def test_where_the_line_ended_or_went_on_as_behind_the_hole_the_end_has_the_vote() -> None:
    for before, after in (([5, NEWLINE, 9, 5], []), ([5, 40, 9, 5], [40, 41])):
        votes = recollection(before, after).votes([], *flat())
        assert votes is not None
        assert votes.token_ids.tolist() == [END]
        own = recollection(before, after, weights=CERTAIN)
        going_on, end = own.mixed([], *flat())
        assert float(end.exp()) == pytest.approx(1.0, abs=1e-3)
        assert float(going_on.exp().sum()) == pytest.approx(0.0, abs=1e-3)


def test_what_is_forbidden_stays_forbidden() -> None:
    own = recollection([5, BANNED, 9, 5], weights=CERTAIN)
    assert own.votes([], *flat()) is None
    # The first token has to continue a word: neither another token nor the end may come.
    allowed = rules(mask(30, 31)).log_probabilities(torch.zeros(1, V), is_first=True)
    going_on, end = allowed[0][0], allowed[1][0]
    assert recollection([5, 20, 9, 5, NEWLINE, 5]).votes([], going_on, end) is None
    own = recollection([5, 20, 9, 5, 31, 9, 5])
    mixed, mixed_end = own.mixed([], going_on, end)
    assert mixed[31] > mixed[30] > -math.inf
    assert mixed_end == -math.inf
    assert torch.isinf(mixed).sum() == V - 2


def test_chances_still_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        texts = torch.randint(2, 12, (3, 60), generator=generator).tolist()
        own = recollection(texts[0], texts[1], [texts[2]])
        logits = torch.randn(1, V, generator=generator)
        going_on, end = rules().log_probabilities(logits, is_first=False)
        before = going_on[0].clone()
        mixed, mixed_end = own.mixed([seed % 10 + 2], going_on[0], end[0])
        assert float(mixed.exp().sum() + mixed_end.exp()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(going_on[0], before)  # the model's own are left as they were


def test_a_fill_does_not_recall_itself() -> None:
    assert recollection([8, 5]).votes([30, 31, 30, 31, 30], *flat()) is None
    votes = recollection([30, 40, 8, 5]).votes([30, 31, 30], *flat())
    assert votes is not None
    assert votes.token_ids.tolist() == [40]


def test_a_long_fill_has_room() -> None:
    written = [2 + index % 30 for index in range(700)]
    votes = recollection([*written[:30], 5, 6]).votes(written, *flat())
    assert votes is not None
    assert votes.token_ids.tolist() == [2 + 700 % 30]
    assert votes.lengths.tolist() == [10]


def test_what_stood_between_such_ends_is_a_guess() -> None:
    """The more tokens a place shares on both sides, the sooner; of equal ones the nearest."""
    own = recollection(
        [5, 6, 7], after=[40, 41], elsewhere=[[9, 7, 22, 40, 8], [6, 7, 20, 21, 40, 41]]
    )
    assert own.joins(10) == [[20, 21], [22]]
    own = recollection([7, 30, 40, 9, 7], after=[40], elsewhere=[[7, 31, 40], [7, 32, 40]])
    assert own.joins(10) == [[30], [31]]
    own = recollection([6, 7], after=[40], elsewhere=[[6, 7, 20, 40, 21, 40]])
    assert own.joins(10) == [[20], [20, 40, 21]]
    assert own.joins(2) == [[20]]


def test_no_guess_breaks_the_rules_or_spans_two_texts() -> None:
    elsewhere = [[7, 20], [21, 40], [7, 40], [7, BANNED, 40], [7, 23, NEWLINE, 40]]
    assert recollection([6, 7], after=[40], elsewhere=elsewhere).joins(10) == []
    assert recollection([6, 7], after=[], elsewhere=[[7, 20, 40]]).joins(10) == []
    assert recollection([], after=[40], elsewhere=[[7, 20, 40]]).joins(10) == []
    text = torch.tensor([7, 20, 40, 7, 31, 40, -1], dtype=torch.int32).numpy()
    healing = rules(first_allowed=mask(31))
    assert Recollection(WEIGHTS, [text], [40], [7], healing).joins(10) == [[31]]


def test_a_text_is_no_guess_at_its_own_hole() -> None:
    """Where the hole is, both its ends are; nothing stands between them."""
    assert recollection([5, 7], after=[40, 7, 8, 40]).joins(10) == [[8]]
    assert recollection([5, 7], after=[40, 41]).joins(10) == []


@pytest.mark.parametrize("part", [{"length": 1}, {"nonsense": 2}, {"length": "x"}, [1]])
def test_a_broken_part_of_the_config_is_named(part: object) -> None:
    with pytest.raises(CheckpointError, match=r"recall: .*agreement"):
        RecallWeights.from_json({"recall": part})


def test_weights_survive_the_config() -> None:
    assert RecallWeights.from_json({"recall": WEIGHTS.to_json()}) == WEIGHTS
    assert RecallWeights.from_json({}) is None


LOOKUP = """
def zubrowka_by_name(name):
    return registry.lookup_zubrowka(name, strict=True)
"""


def test_the_shipped_model_writes_what_only_another_file_says(engine: DiffusionEngine) -> None:
    assert engine.info.recalls
    request = InfillRequest(
        "def first(name):\n    return registry.lookup_zu", "\n", HoleKind.LINE, "python"
    )
    alone = engine.fill(request)
    near = engine.fill(dataclasses.replace(request, nearby=(LOOKUP,)))
    off = engine.fill(dataclasses.replace(request, nearby=(LOOKUP,), recall=False))
    assert near.text == "browka(name, strict=True)"
    assert near.confidence > 0.1
    assert near.text not in (alone.text, off.text)


def test_the_judge_chooses_among_the_guesses(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prefers is the fill, with its own confidence; what it likes no better is not."""
    usual = "def first(name):\n    found = table.get(name)\n    print(name)\n"
    other = "while True:\n    found = registry.obscure(name, 7) or None\n    return found.text\n"
    request = InfillRequest(
        "from tables import registry, table\n\n\ndef first(name):\n    found = ",
        "\n    return found.text\n",
        HoleKind.LINE,
        "python",
        nearby=(usual, other, usual),
    )
    judged: list[str] = []

    def scores(prompt: object, texts: list[str]) -> list[float]:
        judged.extend(texts)
        return [float(preferred in text) for text in texts]

    monkeypatch.setattr(engine._judge, "scores", scores)
    monkeypatch.setattr("dgemma_engine.copying._SURE", 1.0)
    preferred = "registry.obscure(name, 7) or None"
    result = engine.fill(request)
    assert result.text == preferred
    assert 0.0 < result.confidence < 1.0
    written = judged[0]
    preferred = "no such text"
    assert engine.fill(request).text == written
    monkeypatch.setattr("dgemma_engine.copying._SURE", 0.0)
    judged.clear()
    assert engine.fill(request).text == written
    assert not judged, "what is sure enough does not wait for the judge"


def test_a_text_that_changed_is_tokenized_like_any_other(engine: DiffusionEngine) -> None:
    recall = Recall(engine.tokenizer, WEIGHTS)
    text = "import os\n\n\ndef one():\n    return 1\n\n\nclass Two:\n    three = 3\n"
    pieces = recall._ids_of_text(text)
    assert pieces[-1] == -1
    assert engine.tokenizer.decode(pieces[:-1].tolist()) == text
    assert len(pieces) - 1 == len(engine.tokenizer.encode(text))


def test_diffusion_drafts_are_chosen_with_it(engine: DiffusionEngine) -> None:
    """The judge that compares drafts recalls too; the canvas does not."""
    request = InfillRequest(
        "total = sum(values)\nprint(total)\ntotal = ",
        "\nprint(total)\n",
        HoleKind.LINE,
        "python",
        decoder=Decoder.DIFFUSION,
    )
    plan = engine.strategy.plan(request)
    assert plan.judge is not None
    own = Recall(engine.tokenizer, WEIGHTS).into(plan, request)
    assert own.judge is not None
    texts = ["sum(values)", "sum(others)"]
    plain = engine._judge.scores(plan.judge, texts)
    recalled = engine._judge.scores(own.judge, texts)
    assert recalled[0] - recalled[1] > plain[0] - plain[1]


def test_encoding_ahead_reads_what_is_nearby(engine: DiffusionEngine) -> None:
    assert engine._recall is not None
    before = engine._recall._ids_of_text.cache_info().misses
    request = InfillRequest("x = ", "\n", HoleKind.LINE, "python", nearby=("y = 12345\n",))
    engine.encode(request)
    engine.fill(request)
    assert engine._recall._ids_of_text.cache_info().misses == before + 1


def test_a_checkpoint_without_the_numbers_recalls_nothing(tmp_path: Path) -> None:
    engine = build_engine(str(save_checkpoint(tmp_path)))
    assert not engine.info.recalls
