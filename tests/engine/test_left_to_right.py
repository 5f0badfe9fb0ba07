"""The encoder as a decoder: logits, chains of probabilities, fills from left to right."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    CheckpointError,
    Decoder,
    DraftStep,
    HoleKind,
    InfillRequest,
    RequestError,
    StopReason,
)
from dgemma_engine.cache import PrefixCache
from dgemma_engine.canvas import EOM_ID, PAD_ID
from dgemma_engine.chains import CausalRules, read_left_to_right
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.left_to_right import decode_left_to_right
from dgemma_engine.masks import encoder_mask
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.strategies.plan import token_mask

from .tiny import CHAT_TOKENS, build_model, engine_of, sample_request, save_checkpoint

VOCAB_SIZE = 400
PROMPT = list(range(100, 140))  # longer than the sliding window of 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return build_model()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("tiny"))))


def mask(*token_ids: int) -> torch.Tensor:
    return token_mask(token_ids, VOCAB_SIZE, CPU)


def rules(first_allowed: torch.Tensor | None = None) -> CausalRules:
    return CausalRules(mask(0, 1, 2, 7), mask(EOM_ID, 60), first_allowed)


@torch.no_grad()
def joint_logits(model: DiffusionGemma, token_ids: list[int]) -> torch.Tensor:
    """(S, V) by the training forward over everything at once."""
    length = len(token_ids)
    hidden = model.forward_joint(
        torch.tensor([token_ids]),
        torch.zeros(length, dtype=torch.bool),
        torch.arange(length)[None],
        encoder_mask(0, length, model.config.sliding_window, CPU)[None, None],
        encoder_mask(0, length, None, CPU)[None, None],
    )
    return model.logits(hidden[0])


def test_next_token_logits_equal_the_whole_forward(model: DiffusionGemma) -> None:
    """Token by token on a cache, or all at once: the same logits."""
    expected = joint_logits(model, PROMPT)
    cache = PrefixCache(model)
    for length in (1, 2, 30, 31, 40, 12):  # forth in steps and leaps, then back
        actual = cache.next_token_logits(PROMPT[:length])
        torch.testing.assert_close(actual, expected[length - 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_cached", [0, 1, 25, 40])
def test_continuations_are_read_without_writing(model: DiffusionGemma, num_cached: int) -> None:
    """Every row reads like a text of its own, and the cache stays what it was."""
    cache, _ = PrefixCache(model).encode(PROMPT)
    rows = [[150, 151, 152, 153], [160, 161, 162, 163], [150, 161, 99, 1]]
    actual = model.continuation_logits(torch.tensor(rows), cache, num_cached)
    for row, logits in zip(rows, actual, strict=True):
        expected = joint_logits(model, PROMPT[:num_cached] + row)[num_cached:]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert cache.length == len(PROMPT)


def test_rules_make_what_is_allowed_sum_to_one() -> None:
    """Banned tokens get nothing, ends are summed, the first place has rules of its own."""
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    own = rules(first_allowed=mask(7, 60, 200))
    going_on, end = own.log_probabilities(logits, is_first=False)
    torch.testing.assert_close(going_on.exp().sum(-1) + end.exp(), torch.ones(3))
    assert (going_on[:, [0, 1, 2, 7, EOM_ID, 60]] == -math.inf).all()
    first, first_end = own.log_probabilities(logits, is_first=True)
    torch.testing.assert_close(first.exp()[:, [7, 60, 200]].sum(-1), torch.ones(3))
    assert (first_end == -math.inf).all(), "a fill that has to continue a word cannot end before it"


@pytest.mark.parametrize("num_tokens", [None, 1, 6])
def test_decoding_takes_the_likeliest_and_reading_agrees(
    model: DiffusionGemma, num_tokens: int | None
) -> None:
    """Greedy, as a loop over the whole forward is; and `read_left_to_right` gives its chain."""
    own = rules()
    cache = PrefixCache(model)
    *_, chain = decode_left_to_right(cache, PROMPT, own, 12, num_tokens)
    expected: list[int] = []
    while len(expected) < (num_tokens or 12):
        logits = joint_logits(model, PROMPT + expected)[-1:]
        going_on, end = own.log_probabilities(logits, is_first=not expected)
        if num_tokens is None and end[0] >= going_on[0].max():
            break
        expected.append(int(going_on[0].argmax()))
    assert list(chain.token_ids) == expected
    assert num_tokens is None or len(expected) == num_tokens

    kv_cache, num_shared = cache.encode(PROMPT)
    assert num_shared == len(PROMPT), "the prompt had to be encoded again"
    others = [[], [300, 301], list(chain.token_ids)]
    *_, again = read_left_to_right(model, kv_cache, PROMPT, others, own)
    assert again.token_ids == chain.token_ids
    torch.testing.assert_close(
        torch.tensor(again.log_probabilities),
        torch.tensor(chain.log_probabilities),
        atol=1e-4,
        rtol=1e-4,
    )
    assert again.end_log_probability == pytest.approx(chain.end_log_probability, abs=1e-3)


def test_a_chain_is_a_distribution_over_texts(model: DiffusionGemma) -> None:
    """The chances of all texts of at most one token, and of the longer ones, sum to one."""
    cache, _ = PrefixCache(model).encode(PROMPT)
    own = rules()
    singles = [[index] for index in range(VOCAB_SIZE) if index not in (0, 1, 2, 7, EOM_ID, 60)]
    empty, *chains = read_left_to_right(model, cache, PROMPT, [[], *singles], own)
    ended = sum(math.exp(chain.log_probability) for chain in chains)
    longer = sum(
        math.exp(chain.log_probabilities[0]) * (1.0 - math.exp(chain.end_log_probability))
        for chain in chains
    )
    assert math.exp(empty.log_probability) + ended + longer == pytest.approx(1.0, abs=1e-3)


def request(**changes: object) -> InfillRequest:
    return sample_request(**{"decoder": Decoder.LEFT_TO_RIGHT, **changes})


@pytest.mark.parametrize("decoder", [Decoder.LEFT_TO_RIGHT, Decoder.DIFFUSION])
def test_confidences_fall_along_the_text(engine: DiffusionEngine, decoder: Decoder) -> None:
    """Longer starts are less certain, the whole is less certain still, ends lie in the text."""
    for kind in (HoleKind.LINE, HoleKind.BLOCK):
        result = engine.fill(request(kind=kind, decoder=decoder))
        assert result.decoder is decoder
        assert len(result.prefix_confidences) == len(result.token_ends) == len(result.token_ids)
        assert list(result.prefix_confidences) == sorted(result.prefix_confidences, reverse=True)
        assert list(result.token_ends) == sorted(result.token_ends)
        assert result.confidence <= min(result.prefix_confidences, default=1.0)
        if result.text:
            assert result.token_ends[-1] == len(result.text)


@pytest.mark.parametrize("decoder", [Decoder.LEFT_TO_RIGHT, Decoder.DIFFUSION])
def test_a_known_length_is_kept(engine: DiffusionEngine, decoder: Decoder) -> None:
    """Exactly so many tokens, none of them an end mark."""
    for length in (1, 5, 12):
        result = engine.fill(request(num_tokens=length, decoder=decoder, kind=HoleKind.BLOCK))
        assert len(result.token_ids) == length
        assert not {EOM_ID, PAD_ID} & set(result.token_ids)


def test_the_likelier_draft_is_taken(tmp_path: Path) -> None:
    """Of several drafts the fill is the encoder's favourite, likelier than most single ones."""
    folder = save_checkpoint(tmp_path)
    single = build_engine(str(folder))
    (folder / "infill_config.json").write_text('{"layout": {"drafts": 4}}', encoding="utf-8")
    several = build_engine(str(folder))
    asked = request(decoder=Decoder.DIFFUSION, num_tokens=6)
    won = several.fill(asked)
    # The first row of the batch is not the single row (one generator draws for all), but four
    # independent drafts beat one draft of other noise nearly always.
    seeds = [
        single.fill(request(decoder=Decoder.DIFFUSION, num_tokens=6, seed=s)) for s in range(8)
    ]
    assert won.confidence >= sorted(result.confidence for result in seeds)[3]


def test_auto_means_what_the_checkpoint_says(tmp_path: Path) -> None:
    """`left_to_right` names kinds; an unknown kind is an error that names the file."""
    folder = save_checkpoint(tmp_path)
    path = folder / "infill_config.json"
    path.write_text('{"layout": {"left_to_right": ["line"]}}', encoding="utf-8")
    engine = build_engine(str(folder))
    asked = {
        kind: engine.fill(request(decoder=Decoder.AUTO, kind=kind)).decoder
        for kind in (HoleKind.LINE, HoleKind.BLOCK)
    }
    assert asked == {HoleKind.LINE: Decoder.LEFT_TO_RIGHT, HoleKind.BLOCK: Decoder.DIFFUSION}
    path.write_text('{"layout": {"left_to_right": ["paragraph"]}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"infill_config\.json: layout: 'paragraph'"):
        build_engine(str(folder))


def test_a_line_is_shorter_than_its_hole_on_the_canvas(tmp_path: Path) -> None:
    """However much was asked for; a block is not."""
    engine = engine_of(tmp_path, line_tokens=8)

    def steps(**changes: object) -> list[DraftStep]:
        found: list[DraftStep] = []
        result = engine.fill(request(**changes), on_step=found.append)
        assert result.stop_reason is StopReason.MAX_STEPS
        assert len(found) == found[0].max_steps
        return found

    assert len(steps(kind=HoleKind.LINE)) == 7
    assert len(steps(kind=HoleKind.LINE, max_tokens=4)) == 4
    assert len(steps(kind=HoleKind.BLOCK)) == 20


def test_left_to_right_is_cancelled_and_has_deadlines(engine: DiffusionEngine) -> None:
    """Within one pass; what is written by the deadline is kept."""
    token = CancellationToken()
    steps = []

    def cancel_at_two(step: object) -> None:
        steps.append(step)
        if len(steps) == 2:
            token.cancel()

    with pytest.raises(Cancelled):
        engine.fill(request(num_tokens=12), on_step=cancel_at_two, cancel=token)
    assert len(steps) == 2
    result = engine.fill(request(num_tokens=12, deadline=0.0))
    assert result.stop_reason is StopReason.DEADLINE
    assert len(result.token_ids) == 1


def test_a_fill_ends_where_it_is_too_unsure_to_be_of_use(engine: DiffusionEngine) -> None:
    """With the first start that is too unlikely; the same text up to there, as likely."""
    whole = engine.fill(request(num_tokens=12))
    wanted = whole.prefix_confidences[4]
    start = engine.fill(request(num_tokens=12, least_confidence=wanted * 1.0001))
    assert start.stop_reason is StopReason.UNSURE
    assert start.token_ids == whole.token_ids[:5]
    assert start.num_passes == 5
    assert start.confidence == pytest.approx(wanted)
    assert engine.fill(request(num_tokens=12, least_confidence=1e-30)).text == whole.text
    with pytest.raises(RequestError, match=r"in 0 \.\. 1, got 1\.1"):
        request(least_confidence=1.1)


def test_what_is_of_no_use_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge reads whole texts, and takes longer than the writing."""
    engine = engine_of(tmp_path, left_to_right=["line"])
    judged: list[str] = []
    monkeypatch.setattr(
        engine._judge, "scores", lambda _, texts: judged.extend(texts) or [0.0] * len(texts)
    )
    asked = request(decoder=Decoder.AUTO, prefix="x = left + x\ny = x\nx = ", suffix=")\n")
    engine.fill(asked)
    assert judged
    judged.clear()
    engine.fill(dataclasses.replace(asked, least_confidence=0.9))
    assert not judged


def test_chat_cannot_be_read_from_left_to_right(tmp_path: Path) -> None:
    """Asked for what it was not trained for, a chat model says so; nor can it be told a length."""
    engine = build_engine(str(save_checkpoint(tmp_path, CHAT_TOKENS)))
    with pytest.raises(RequestError, match="'chat' cannot decode left to right"):
        engine.fill(request())
    with pytest.raises(RequestError, match="cannot be told a length"):
        engine.fill(request(decoder=Decoder.DIFFUSION, num_tokens=3))
    with pytest.raises(RequestError, match=r"num_tokens must be in 1 \.\. max_tokens"):
        request(num_tokens=21)
