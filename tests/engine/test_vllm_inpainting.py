"""In-painting on a server: asked for in our own layout, and cut like our own fills."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    CheckpointError,
    ContextTooLong,
    Decoder,
    DGemmaError,
    DraftStep,
    EngineUnavailable,
    HoleKind,
    InfillRequest,
    RequestError,
    StopReason,
)
from dgemma_engine.config import ModelConfig
from dgemma_engine.strategies.lengths import LengthStrategy
from dgemma_engine.tokenizer import Tokenizer
from dgemma_engine.vllm import VllmEngine

from .replay_server import (
    Asked,
    ReplayServer,
    Reply,
    completion,
    completion_chunk,
    error,
    models,
    serving,
    some_json,
    tokens,
    wait_until,
)
from .tiny import CHAT_TOKENS, config_json, save_checkpoint
from .tiny import sample_request as request

CANVAS_LENGTH = 64
WORDS_OF_WIDTH = (
    "diffusion_canvas_length must be a positive integer no larger than the served canvas."
)
WORDS_OF_PINS = "diffusion_pinned needs a diffusion_seed_canvas to hold."

Paint = Callable[[Asked], Reply]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", CHAT_TOKENS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


class Replay:
    """Answers as a server with canvases does, with canvases that `paint` makes."""

    def __init__(
        self, tokenizer: Tokenizer, paint: Paint, canvas_length: int = CANVAS_LENGTH
    ) -> None:
        self.tokenizer = tokenizer
        self.paint = paint
        self.canvas_length = canvas_length

    def __call__(self, asked: Asked) -> Reply:
        if asked.path == "/v1/models":
            return models()
        if asked.path == "/tokenize":
            return tokens(self.token_ids(asked.body["prompt"]))
        options = asked.options
        if options.get("diffusion_canvas_length", 0) > self.canvas_length:
            return error(400, WORDS_OF_WIDTH)
        if "diffusion_pinned" in options and "diffusion_seed_canvas" not in options:
            return error(400, WORDS_OF_PINS)
        return self.paint(asked)

    def token_ids(self, text: str) -> list[int]:
        special = self.tokenizer.token_id(text)
        return self.tokenizer.encode(text) if special is None else [special]


def hole_size(asked: Asked) -> int:
    return len(asked.options["diffusion_seed_canvas"]) - len(asked.options["diffusion_pinned"])


def painted(asked: Asked, hole: list[int], chance: float = 0.9, pin_chance: float = 0.9) -> Reply:
    """A canvas with this hole; what is pinned comes back as it was."""
    canvas = list(asked.options["diffusion_seed_canvas"])
    canvas[: len(hole)] = hole
    chances = [math.log(chance)] * len(hole) + [math.log(pin_chance)] * (len(canvas) - len(hole))
    return Reply(events=[completion_chunk("as the server decodes it", canvas, chances, "length")])


def writes(tokenizer: Tokenizer, text: str, others: str = "x") -> Paint:
    """Holes that suit this text get it, likely; the others get a piece of `others`, unlikely."""
    wanted = tokenizer.encode(text)
    (other,) = tokenizer.encode(others)

    def paint(asked: Asked) -> Reply:
        if hole_size(asked) == len(wanted):
            return painted(asked, wanted)
        return painted(asked, [other] * hole_size(asked), chance=0.2)

    return paint


@pytest.fixture
def serve(folder: Path, tokenizer: Tokenizer) -> Iterator[Callable[..., Any]]:
    closing: list[Any] = []

    def start(paint: Paint, **changes: Any) -> tuple[VllmEngine, ReplayServer]:
        manager = serving(Replay(tokenizer, paint, changes.pop("canvas_length", CANVAS_LENGTH)))
        server = manager.__enter__()
        closing.append(lambda: manager.__exit__(None, None, None))
        engine = VllmEngine(server.url, tokenizer=folder, **changes)
        closing.append(engine.close)
        return engine, server

    yield start
    for close in reversed(closing):
        close()


def of_hole(server: ReplayServer) -> list[Asked]:
    asked = server.asked_of("/v1/completions")
    return [one for one in asked if "diffusion_seed_canvas" in one.options]


def two_tokens(tokenizer: Tokenizer, start: str) -> str:
    """A text of two tokens that begins with `start`, from the sample's words."""
    for end in ("t)", "t +", "t\n", "t", "x)", " x", "index", "("):
        if len(tokenizer.encode(start + end)) == 2:
            return start + end
    raise AssertionError(start)


def healed_of(folder: Path, asked_for: InfillRequest) -> str:
    return plan_of(folder, asked_for).healed.decode()


def plan_of(folder: Path, asked_for: InfillRequest) -> Any:
    import torch

    config = ModelConfig.from_json(config_json(CANVAS_LENGTH))
    return LengthStrategy(Tokenizer.load(folder), config, torch.device("cpu")).plan(asked_for)


@pytest.mark.parametrize("kind", list(HoleKind))
def test_the_canvas_is_our_own(
    serve: Callable[..., Any], folder: Path, tokenizer: Tokenizer, kind: HoleKind
) -> None:
    """Prompt, candidate lengths, holes and pins are those of our strategy, slot by slot."""
    asked_for = request(kind=kind, max_tokens=40)
    plan = plan_of(folder, asked_for)
    engine, server = serve(writes(tokenizer, "x x"))
    engine.fill(asked_for)
    firsts = [one for one in of_hole(server) if one.options.get("diffusion_max_steps") == 1]
    found = {hole_size(one): one for one in firsts if one.body["prompt"] == plan.prompt_ids}
    sizes = plan.canvas.hole_mask.sum(dim=-1).tolist()
    assert sizes == sorted(found)
    for row, size in enumerate(sizes):
        hole = plan.canvas.hole_mask[row].tolist()
        expected = plan.canvas.token_ids[row].tolist()
        options = found[size].options
        assert [slot for slot in range(CANVAS_LENGTH) if not hole[slot]] == options[
            "diffusion_pinned"
        ]
        seed = options["diffusion_seed_canvas"]
        assert options["diffusion_canvas_length"] == len(seed) == CANVAS_LENGTH
        assert all(seed[slot] == expected[slot] for slot in options["diffusion_pinned"])
        assert all(0 <= token_id < 400 for token_id in seed)


def test_the_fill_is_cut_and_healed(
    serve: Callable[..., Any], folder: Path, tokenizer: Tokenizer
) -> None:
    """What the first token repeats of the prefix is cut off, and a line ends where it does."""
    asked_for = request(max_tokens=20)
    healed = healed_of(folder, asked_for)
    assert healed
    text = healed + "t +\nprint"
    size = len(tokenizer.encode(text))
    asked_for = dataclasses.replace(asked_for, num_tokens=size)
    engine, _ = serve(writes(tokenizer, text))
    line = engine.fill(asked_for)
    assert line.text == "t +"
    assert engine.fill(dataclasses.replace(asked_for, kind=HoleKind.SELECTION)).text == "t +\nprint"
    assert line.token_ids == tuple(tokenizer.encode(text))
    assert len(line.token_confidences) == len(line.token_ends) == len(line.prefix_confidences)
    assert line.token_ends[-1] == len(line.text)
    assert line.confidence == pytest.approx(0.9**size, rel=1e-6)
    assert line.decoder is Decoder.DIFFUSION


def test_the_best_length_is_the_fill(
    serve: Callable[..., Any], folder: Path, tokenizer: Tokenizer
) -> None:
    """One pass ranks all lengths, the best two go on, and the likelier of these is the fill."""
    asked_for = request(max_tokens=20)
    text = two_tokens(tokenizer, healed_of(folder, asked_for))
    healed = healed_of(folder, asked_for)
    start = tokenizer.encode(healed)

    def paint(asked: Asked) -> Reply:
        size = hole_size(asked)
        if size == 2:
            return painted(asked, tokenizer.encode(text), 0.9)
        hole = (start + tokenizer.encode("x") * size)[:size]
        return painted(asked, hole, 0.6 if size == 6 else 0.3)

    engine, server = serve(paint)
    steps: list[DraftStep] = []
    result = engine.fill(asked_for, steps.append)
    assert result.text == text.removeprefix(healed).partition("\n")[0]
    sizes = [hole_size(one) for one in of_hole(server)]
    assert sorted(sizes[:-2]) == [2, 4, 6, 8, 12, 16]
    assert sorted(sizes[-2:]) == [2, 6]
    assert all("diffusion_max_steps" not in one.options for one in of_hole(server)[-2:])
    assert steps[-1].text == result.text
    assert result.num_passes == 2


def test_candidates_run_side_by_side(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """All lengths are on the server at the same time, so that it can put them into one batch."""
    server: ReplayServer

    def paint(asked: Asked) -> Reply:
        if asked.options.get("diffusion_max_steps") == 1:
            wait_until(lambda: server.most_at_once >= 6, 2.0)
        return painted(asked, tokenizer.encode("x") * hole_size(asked))

    engine, server = serve(paint)
    engine.fill(request(prefix="", max_tokens=20))
    assert server.most_at_once >= 6


def test_a_suffix_that_does_not_agree_loses(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """Of two holes that are as likely, the one whose suffix the model believes is the fill."""

    def paint(asked: Asked) -> Reply:
        size = hole_size(asked)
        hole = tokenizer.encode("x") * size
        reply = painted(asked, hole, 0.5, pin_chance=0.9)
        if size != 8:
            assert reply.events is not None
            emitted = reply.events[0]["choices"][0]["token_ids"]
            emitted[size] = (emitted[size] + 1) % 300  # the model believes something else there
        return reply

    engine, _ = serve(paint)
    assert len(engine.fill(request(prefix="", max_tokens=20)).token_ids) == 8


def test_emitted_tokens_do_not_replace_pins(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """What the server emits at pinned positions is not text, whatever it says."""

    def paint(asked: Asked) -> Reply:
        canvas = [9] * CANVAS_LENGTH
        canvas[:3] = tokenizer.encode("x") * 3
        return Reply(events=[completion_chunk("", canvas, [-0.1] * CANVAS_LENGTH, "length")])

    engine, _ = serve(paint)
    result = engine.fill(request(prefix="", num_tokens=3, kind=HoleKind.SELECTION))
    assert result.text == "xxx"


def test_what_does_not_continue_the_cursor_is_asked_again_unhealed(
    serve: Callable[..., Any], folder: Path, tokenizer: Tokenizer
) -> None:
    """A server cannot be kept from starting anew: then the cut token stays in the prompt."""
    asked_for = request(num_tokens=2)
    assert not "xx".startswith(healed_of(folder, asked_for))
    engine, server = serve(lambda asked: painted(asked, tokenizer.encode("x") * 2))
    result = engine.fill(asked_for)
    assert result.text == "xx"
    healed, plain = (one.body["prompt"] for one in of_hole(server))
    assert plain[: len(healed)] == healed
    assert len(plain) == len(healed) + 1


def test_specials_never_reach_the_text(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """A hole with a special token loses to one without; alone it is no fill at all."""
    turn_end = tokenizer.token_id("<turn|>")
    assert turn_end is not None

    def paint(asked: Asked) -> Reply:
        size = hole_size(asked)
        if size == 4:
            return painted(asked, tokenizer.encode("x") * 4, 0.2)
        return painted(asked, [turn_end] * size, 0.99)

    engine, _ = serve(paint)
    assert engine.fill(request(prefix="", max_tokens=20)).text == "xxxx"
    assert engine.fill(request(prefix="", num_tokens=2)).text == ""


def test_settings_reach_the_server(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """Passes, seed and length are the request's; two seeds begin with different noise."""
    engine, server = serve(lambda asked: painted(asked, tokenizer.encode("x") * 5))
    for seed in (1, 1, 2):
        engine.fill(request(prefix="", num_tokens=5, max_steps=7, seed=seed))
    # Each fill asks twice: x does not continue what was healed.
    one, again, other = (asked.options for asked in of_hole(server)[1::2])
    assert one["diffusion_max_steps"] == 7
    assert one == again
    assert one["diffusion_seed_canvas"][:5] != other["diffusion_seed_canvas"][:5]
    assert one["diffusion_seed_canvas"][5:] == other["diffusion_seed_canvas"][5:]


def test_a_draft_is_revised_where_it_is_least_likely(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """The likely half of a draft is pinned; the rest is denoised anew."""
    draft = "x y x y"
    ids = tokenizer.encode(draft)
    (new,) = tokenizer.encode("z")

    def paint(asked: Asked) -> Reply:
        if asked.options.get("diffusion_max_steps") == 1:
            reply = painted(asked, ids, 0.95)
            assert reply.events is not None
            reply.events[0]["choices"][0]["token_ids"][0] = new  # something else is likelier here
            return reply
        return painted(asked, [new] * len(ids))

    engine, server = serve(paint)
    result = engine.fill(
        request(kind=HoleKind.SELECTION, draft=draft, strength=1 / len(ids), max_tokens=20)
    )
    assert result.token_ids == (new, *ids[1:])
    assert result.text == "z" + draft[1:]
    read, revise = of_hole(server)
    assert read.options["diffusion_seed_canvas"][: len(ids)] == ids
    assert revise.options["diffusion_pinned"] == list(range(1, CANVAS_LENGTH))


def test_a_draft_outlasts_what_is_no_text(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """If a special token comes for its weakest part, the draft is the fill."""
    engine, _ = serve(lambda asked: painted(asked, [0] * hole_size(asked)))
    result = engine.fill(request(kind=HoleKind.SELECTION, draft="x y", max_tokens=20))
    assert result.text == "x y"
    assert result.confidence < 0.01


def test_a_draft_that_is_too_long_is_refused(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """The message has both numbers."""
    engine, _ = serve(writes(tokenizer, "x"))
    draft = "qj" * CANVAS_LENGTH
    with pytest.raises(RequestError, match=f"{len(tokenizer.encode(draft))} tokens.*holds 56"):
        engine.fill(request(draft=draft))


def test_left_to_right_is_refused(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """A canvas has no such decoder."""
    engine, _ = serve(writes(tokenizer, "x"))
    with pytest.raises(RequestError, match="left to right"):
        engine.fill(request(decoder=Decoder.LEFT_TO_RIGHT))


def test_a_context_that_is_too_long_is_refused_here(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """The server is not asked for what cannot fit."""
    engine, server = serve(writes(tokenizer, "x"))
    count = len(of_hole(server))
    with pytest.raises(ContextTooLong, match="1024"):
        engine.fill(request(prefix="value = qjk\n" * 400))
    assert len(of_hole(server)) == count


def test_cancelling_closes_every_stream(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """The server sees its clients leave, soon, and the next fill works."""
    hangs = True
    engine, server = serve(
        lambda asked: (
            Reply(events=[], hangs=True)
            if hangs
            else painted(asked, tokenizer.encode("x") * hole_size(asked))
        )
    )
    cancel = CancellationToken()

    import threading

    threading.Thread(
        target=lambda: (wait_until(lambda: len(of_hole(server)) == 6), cancel.cancel())
    ).start()
    with pytest.raises(Cancelled):
        engine.fill(request(prefix="", max_tokens=20), cancel=cancel)
    assert wait_until(lambda: server.num_left == 6)
    hangs = False
    assert engine.fill(request(prefix="", num_tokens=3)).text == "xxx"


def test_a_deadline_takes_the_draft_at_hand(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """When the time is over after the first pass, its best draft is the fill, and streams close."""

    def paint(asked: Asked) -> Reply:
        if asked.options.get("diffusion_max_steps") != 1:
            return Reply(events=[], hangs=True)
        return painted(asked, tokenizer.encode("x") * hole_size(asked))

    engine, server = serve(paint)
    start = time.monotonic()
    result = engine.fill(request(prefix="", max_tokens=20, deadline=start + 0.7))
    assert time.monotonic() - start < 3.0
    assert result.stop_reason is StopReason.DEADLINE
    assert set(result.text) == {"x"}
    assert wait_until(lambda: server.num_left == 2)


def test_a_deadline_before_anything_came(serve: Callable[..., Any]) -> None:
    """Nothing is offered, and nothing is claimed of it."""
    engine, _ = serve(lambda asked: Reply(events=[], hangs=True))
    result = engine.fill(request(deadline=time.monotonic() + 0.2))
    assert (result.text, result.confidence) == ("", 0.0)
    assert result.stop_reason is StopReason.DEADLINE


@pytest.mark.parametrize(("served", "expected"), [(256, 64), (64, 64), (40, 32), (32, 32)])
def test_the_served_canvas_is_found(
    serve: Callable[..., Any], tokenizer: Tokenizer, served: int, expected: int
) -> None:
    """The width is the checkpoint's or, where less is served, the widest half of it that fits."""
    engine, server = serve(
        lambda asked: painted(asked, tokenizer.encode("x") * 2), canvas_length=served
    )
    engine.fill(request(prefix="", num_tokens=2))
    assert len(of_hole(server)[0].options["diffusion_seed_canvas"]) == expected


def test_hostile_canvases_are_errors_of_ours(
    serve: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """Whatever comes in the place of a canvas: a fill, or an error that we know."""
    moments = random.Random(0)
    num_errors = 0

    def paint(asked: Asked) -> Reply:
        size = CANVAS_LENGTH if moments.random() < 0.7 else moments.randrange(CANVAS_LENGTH)
        ids = [moments.choice((0, 5, 300, 399, 400, 2**40, -1, "7", None)) for _ in range(size)]
        chances = [moments.choice((-0.1, 0.0, 3.0, -1e308, float("-inf"))) for _ in range(size)]
        chunk = completion_chunk("", None, None, "length")
        chunk["choices"][0].update(token_ids=ids, logprobs={"token_logprobs": chances})
        if moments.random() < 0.3:
            chunk = some_json(moments)
        return Reply(events=[chunk])

    engine, _ = serve(paint)
    for number in range(40):
        try:
            draft = "x y x" if number % 3 == 0 else None
            engine.fill(request(num_tokens=None if draft else 3, draft=draft, strength=0.5))
        except DGemmaError:
            num_errors += 1
    assert num_errors > 0


def test_strange_tokens_are_no_fill(serve: Callable[..., Any]) -> None:
    """Ids beyond the vocabulary, or below it, and chances that are none, make no text."""
    strange = iter([[2**40, 99, 98], [-1, 99, 98], [99, 400, 98], *[[99, 98, 2**40]] * 3])

    def paint(asked: Asked) -> Reply:
        canvas = next(strange) + asked.options["diffusion_seed_canvas"][3:]
        return Reply(events=[completion_chunk("", canvas, [-math.inf] * len(canvas), "length")])

    engine, _ = serve(paint)
    for _ in range(3):
        result = engine.fill(request(num_tokens=3))
        assert (result.text, result.confidence) == ("", 0.0)


def test_info_says_how(serve: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """The status names the model, the server, and the way it is asked."""
    engine, server = serve(writes(tokenizer, "x"))
    info = engine.info
    assert info.strategy == "in-painting"
    assert info.model == "google/diffusiongemma-26B-A4B-it"
    assert info.device == server.url.removeprefix("http://")
    shown = engine.render(request())
    assert "slots to fill" in shown
    assert "taken back" in shown


def test_other_token_ids_are_an_error(folder: Path, tokenizer: Tokenizer) -> None:
    """A tokenizer that is not the server's is found at connect, before it garbles code."""
    replay = Replay(tokenizer, lambda asked: Reply(events=[]))

    def shifted(asked: Asked) -> Reply:
        reply = replay(asked)
        if asked.path == "/tokenize" and len(reply.body["tokens"]) > 1:
            return tokens([*reply.body["tokens"][:4], 9999, *reply.body["tokens"][5:]])
        return reply

    with serving(shifted) as server, pytest.raises(CheckpointError) as caught:
        VllmEngine(server.url, tokenizer=folder)
    assert "token 4 is [9999] there" in str(caught.value)
    assert "config.json" in str(caught.value)


def test_other_special_ids_are_an_error(folder: Path, tokenizer: Tokenizer) -> None:
    """Text alone would not show it: the turn markers are compared too."""
    replay = Replay(tokenizer, lambda asked: Reply(events=[]))

    def shifted(asked: Asked) -> Reply:
        if asked.path == "/tokenize" and asked.body["prompt"] == "<|turn>":
            return tokens([105])
        return replay(asked)

    with serving(shifted) as server, pytest.raises(CheckpointError, match=r"<\|turn>"):
        VllmEngine(server.url, tokenizer=folder)


def test_ids_are_compared_without_a_tokenize_path(folder: Path, tokenizer: Tokenizer) -> None:
    """A gateway that lets only /v1 through: the prompt's ids come back with a completion."""
    replay = Replay(tokenizer, lambda asked: Reply(events=[]))

    def gateway(asked: Asked) -> Reply:
        if asked.path == "/tokenize":
            return Reply({"detail": "Not Found"}, 404)
        if asked.body.get("return_token_ids") and not asked.options:
            ids = replay.token_ids(asked.body["prompt"])
            return Reply(completion("", len(ids), prompt_token_ids=ids))
        return replay(asked)

    with serving(gateway) as server:
        engine = VllmEngine(server.url, tokenizer=folder)
        assert engine.info.strategy == "in-painting"
        engine.close()


def test_a_level_that_was_asked_for_is_not_replaced(folder: Path, tokenizer: Tokenizer) -> None:
    """Whoever asks for in-painting and cannot have it is told why."""
    replay = Replay(tokenizer, lambda asked: Reply(events=[]))

    def old(asked: Asked) -> Reply:
        return Reply(completion("x", 3)) if asked.options else replay(asked)

    with serving(old) as server:
        with pytest.raises(EngineUnavailable, match=r"in-painting: .*from 0\.33"):
            VllmEngine(server.url, tokenizer=folder, level="in-painting")
        with pytest.raises(EngineUnavailable, match="in-painting: there is no tokenizer"):
            VllmEngine(server.url, level="in-painting")
