"""The end of a step against its twin, and the twin against the engine's sampler and criterion."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dgemma_engine import sampler, stopping
from dgemma_kernels import entropy_accept
from dgemma_kernels.backend import report
from dgemma_kernels.entropy_accept import AcceptedStep, SlotState
from dgemma_kernels.entropy_accept.reference import entropy_accept_reference
from dgemma_kernels.testing import assert_close

RULES = {"entropy_bound": 0.1, "stability_threshold": 1, "confidence_threshold": 0.005}


class Step(NamedTuple):
    """All that a step is given."""

    state: SlotState
    candidates: Tensor
    argmax: Tensor
    entropy: Tensor
    fresh: Tensor
    hole_mask: Tensor


def random_step(batch: int, num_slots: int, device: torch.device, seed: int = 0) -> Step:
    """Entropies from 1e-4 to 10 nats, a tenth of the slots clamped, some canvases finished."""
    generator = torch.Generator().manual_seed(seed)

    def ids() -> Tensor:
        return torch.randint(0, 1000, (batch, num_slots), generator=generator)

    hole = torch.rand((batch, num_slots), generator=generator) < 0.9
    hole[:, 0] = True
    entropy = torch.exp(torch.rand((batch, num_slots), generator=generator) * 11.5 - 9.2) * hole
    argmax = ids()
    earlier = torch.where(torch.arange(batch)[:, None] % 2 == 0, argmax, ids())
    state = SlotState(
        ids(),
        earlier,
        torch.arange(batch, dtype=torch.int32),
        torch.arange(batch) % 3 == 2,
    )
    moved = SlotState(*(part.to(device) for part in state))
    rest = (part.to(device) for part in (ids(), argmax, entropy, ids(), hole))
    return Step(moved, *rest)


def assert_same(expected: AcceptedStep, actual: AcceptedStep) -> None:
    for name, right, found in zip(SlotState._fields, expected.state, actual.state, strict=True):
        assert_close(name, right, found)
    assert_close("accepted", expected.accepted, actual.accepted)
    assert_close("mean_entropy", expected.mean_entropy, actual.mean_entropy)


@pytest.mark.parametrize("bound", [0.1, 5.0])
@pytest.mark.parametrize(("batch", "num_slots"), [(1, 1), (4, 17), (3, 64), (1, 256)])
@pytest.mark.usefixtures("kernels")
def test_equals_its_twin(batch: int, num_slots: int, bound: float, device: torch.device) -> None:
    """Accepted, noisy and finished canvases; a floor under the accepted; in place or not."""
    step = random_step(batch, num_slots, device)
    floor = torch.arange(batch, device=device) * 3
    for min_accepted in (None, floor):
        given: dict[str, Any] = {**RULES, "entropy_bound": bound, "min_accepted": min_accepted}
        actual = entropy_accept(*step, **given)
        assert report()["entropy_accept"] == "triton"
        expected = entropy_accept_reference(*step, **given)
        assert_same(expected, actual)
        copy = step._replace(state=SlotState(*(part.clone() for part in step.state)))
        in_place = entropy_accept(*copy, **given, in_place=True)
        assert in_place.state is copy.state
        assert_same(expected, in_place)


@pytest.mark.usefixtures("kernels")
def test_slots_of_equal_entropy_go_by_place(device: torch.device) -> None:
    """Of three that are as certain, the bound takes the first two; clamped ones cost nothing."""
    step = random_step(1, 5, device)
    entropy = torch.tensor([[0.08, 0.0, 0.08, 3.0, 0.08]], device=device)
    actual = entropy_accept(*step._replace(entropy=entropy), **RULES)
    assert actual.accepted.tolist() == [[True, True, True, False, False]]
    expected = torch.where(actual.accepted, step.candidates, step.fresh)
    assert_close("next", expected, actual.state.token_ids)


@pytest.mark.usefixtures("kernels")
def test_says_what_it_does_not_support(device: torch.device) -> None:
    """A canvas of more slots than a program holds takes the twin; a wrong bound is an error."""
    step = random_step(1, 1100, device)
    assert_same(entropy_accept_reference(*step, **RULES), entropy_accept(*step, **RULES))
    assert report()["entropy_accept"] == "reference: 1100 slots"
    with pytest.raises(ValueError, match="above 0, got 0"):
        entropy_accept(*step, **{**RULES, "entropy_bound": 0})


@pytest.mark.parametrize("threshold", [1, 2])
@pytest.mark.parametrize("use_kernel", [False, True])
def test_is_the_engines_sampler_and_stopping_rule(
    use_kernel: bool, threshold: int, device: torch.device, request: pytest.FixtureRequest
) -> None:
    """Six steps of four canvases: acceptance, noise, and when each is finished."""
    if use_kernel:
        request.getfixturevalue("kernels")
    batch, num_slots, vocab_size = 4, 6, 12
    generator = torch.Generator().manual_seed(5)
    criterion = stopping.StableAndConfident(threshold, 0.3)
    state = SlotState(
        torch.zeros((batch, num_slots), dtype=torch.int64, device=device),
        torch.full((batch, num_slots), -1, device=device),
        torch.zeros(batch, dtype=torch.int32, device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
    )
    hole = torch.ones((batch, num_slots), dtype=torch.bool)
    hole[1, 2:4] = False
    base = torch.randn((batch, num_slots, vocab_size), generator=generator)
    finished = torch.zeros(batch, dtype=torch.bool)
    seen = 0
    for index in range(6):
        noise = torch.randn(base.shape, generator=generator)
        logits = (base * (1 + 3 * index) + noise).masked_fill(~hole[..., None], -1e9)
        logits[..., 0] = logits[..., 0].masked_fill(~hole, 0.0)
        accepted, entropy = sampler.accept(logits, entropy_bound=0.1)
        candidates = sampler.draw(logits, generator)
        fresh = sampler.noise((batch, num_slots), vocab_size, generator)
        before = state
        step = (candidates, logits.argmax(-1), entropy, fresh, hole)
        actual = entropy_accept(
            state,
            *(part.to(device) for part in step),
            entropy_bound=0.1,
            stability_threshold=threshold,
            confidence_threshold=0.3,
        )
        was_finished = finished
        finished = finished | criterion(step[1], entropy, hole)
        assert torch.equal(actual.accepted.cpu(), accepted)
        assert torch.equal(actual.state.is_finished.cpu(), finished)
        expected = torch.where(accepted, candidates, fresh)
        expected = torch.where(was_finished[:, None], before.token_ids.cpu(), expected)
        assert torch.equal(actual.state.token_ids.cpu(), expected)
        state = actual.state
        seen += int(finished.sum())
    assert 0 < seen < 6 * batch  # some finish, and not all at once
