"""Requests and answers against vLLM's own classes, where its wheel is installed.

Its server is not started: no GPU is needed, nor most of what vLLM depends on.

    pip install --target DIR --no-deps vllm==0.33.0
    PYTHONPATH=DIR python -m pytest tests/engine/test_vllm_protocol.py -rs

What is still missing is named in the reason for the skip; it can be installed the same way.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dgemma_engine import HoleKind
from dgemma_engine.tokenizer import Tokenizer
from dgemma_engine.vllm import VllmEngine

from .replay_server import (
    Asked,
    ReplayServer,
    Reply,
    chat_chunk,
    completion,
    completion_chunk,
    error,
    models,
    serving,
    tokens,
)
from .test_vllm_inpainting import (
    CANVAS_LENGTH,
    WORDS_OF_PINS,
    WORDS_OF_WIDTH,
    Replay,
    of_hole,
    painted,
)
from .test_vllm_server import fills_in_the_middle, prompts
from .tiny import CHAT_TOKENS, save_checkpoint
from .tiny import sample_request as request

VOCAB_SIZE = 400


@pytest.fixture(scope="module")
def vllm() -> SimpleNamespace:
    """vLLM's classes by their names."""
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # it would take over the tests' logging
    names = {
        "vllm.entrypoints.openai.completion.protocol": (
            "CompletionRequest",
            "CompletionResponse",
            "CompletionStreamResponse",
        ),
        "vllm.entrypoints.openai.chat_completion.protocol": (
            "ChatCompletionRequest",
            "ChatCompletionStreamResponse",
        ),
        "vllm.entrypoints.serve.tokenize.protocol": (
            "TokenizeCompletionRequest",
            "TokenizeResponse",
        ),
        "vllm.entrypoints.serve.engine.protocol": ("ErrorResponse", "ModelList"),
        "vllm.utils.diffusion": ("validate_diffusion_sampling_params",),
        "vllm.exceptions": ("VLLMValidationError",),
    }
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of libraries that are not here
        for module_name, wanted in names.items():
            try:
                module = importlib.import_module(module_name)
            except ImportError as missing:
                pytest.skip(f"vLLM's classes cannot be imported: {missing}")
            found.update((name, getattr(module, name)) for name in wanted)
    return SimpleNamespace(**found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", CHAT_TOKENS)


@pytest.fixture(scope="module")
def painting(folder: Path) -> Iterator[ReplayServer]:
    """A server that was asked for canvases in every way there is."""
    tokenizer = Tokenizer.load(folder)

    def paint(asked: Asked) -> Reply:
        options = asked.options
        size = len(options["diffusion_seed_canvas"]) - len(options["diffusion_pinned"])
        return painted(asked, tokenizer.encode("x") * size)

    with serving(Replay(tokenizer, paint, canvas_length=CANVAS_LENGTH)) as server:
        engine = VllmEngine(server.url, tokenizer=folder)
        for kind in HoleKind:
            engine.fill(request(kind=kind))
        engine.fill(request(max_steps=3, num_tokens=5, seed=2**62))
        engine.fill(request(draft="x y x", strength=0.5))
        engine.close()
        yield server


def test_canvases_are_accepted(vllm: SimpleNamespace, painting: ReplayServer) -> None:
    """The request class keeps every field, and the check at admission lets the canvas in."""
    bodies = [asked.body for asked in of_hole(painting)]
    assert len(bodies) > 10
    for body in bodies:
        assert set(body) <= set(vllm.CompletionRequest.model_fields)
        parsed = vllm.CompletionRequest.model_validate(body)
        assert parsed.vllm_xargs == body["vllm_xargs"]
        assert parsed.prompt == body["prompt"]
        params = parsed.to_sampling_params(body["max_tokens"], {})
        assert params.extra_args == body["vllm_xargs"]
        assert params.ignore_eos
        assert params.logprobs == 1
        assert params.max_tokens == CANVAS_LENGTH
        vllm.validate_diffusion_sampling_params(params, canvas_length=256, vocab_size=VOCAB_SIZE)
        assert params.max_tokens == CANVAS_LENGTH
        assert params.extra_args["diffusion_read_only"] in (0, 1)


def test_a_canvas_of_another_width_would_be_refused(
    vllm: SimpleNamespace, painting: ReplayServer
) -> None:
    """The check above can fail: it does so for a seed that is one slot short."""
    body = of_hole(painting)[0].body
    options = body["vllm_xargs"]
    short = {**options, "diffusion_seed_canvas": options["diffusion_seed_canvas"][:-1]}
    params = vllm.CompletionRequest.model_validate(
        {**body, "vllm_xargs": short}
    ).to_sampling_params(CANVAS_LENGTH, {})
    with pytest.raises(vllm.VLLMValidationError, match="must hold exactly 64 ids"):
        vllm.validate_diffusion_sampling_params(params, canvas_length=256, vocab_size=VOCAB_SIZE)


def test_probes_are_refused_in_these_words(vllm: SimpleNamespace, painting: ReplayServer) -> None:
    """What the probe reads in a refusal is what vLLM says, of the width and of the pins."""
    probes = [
        asked.body
        for asked in painting.asked_of("/v1/completions")
        if asked.options and "diffusion_seed_canvas" not in asked.options
    ]
    assert len(probes) == 2
    for body, words in zip(probes, (WORDS_OF_WIDTH, WORDS_OF_PINS), strict=True):
        params = vllm.CompletionRequest.model_validate(body).to_sampling_params(1, {})
        with pytest.raises(vllm.VLLMValidationError) as caught:
            vllm.validate_diffusion_sampling_params(
                params, canvas_length=CANVAS_LENGTH, vocab_size=VOCAB_SIZE
            )
        assert str(caught.value).startswith(words)


def test_other_requests_are_accepted(vllm: SimpleNamespace, folder: Path) -> None:
    """Suffix, prompt, chat, and the questions at connect."""
    tokenizer = Tokenizer.load(folder)
    classes = {
        "/v1/completions": vllm.CompletionRequest,
        "/v1/chat/completions": vllm.ChatCompletionRequest,
        "/tokenize": vllm.TokenizeCompletionRequest,
    }
    asked: list[Asked] = []

    def chats(one: Asked) -> Reply:
        if one.path == "/v1/chat/completions":
            return Reply(events=[chat_chunk("x", "stop")])
        return models() if one.path == "/v1/models" else Reply({}, 404)

    for answer in (fills_in_the_middle("x"), prompts(tokenizer, lambda _: "x"), chats):
        with serving(answer) as server:
            engine = VllmEngine(server.url, tokenizer=folder)
            engine.fill(request())
            engine.fill(request(kind=HoleKind.BLOCK))
            engine.close()
            asked += server.asked
    bodies = [(one.path, one.body) for one in asked if one.method == "POST"]
    assert {path for path, _ in bodies} == set(classes)
    for path, body in bodies:
        assert set(body) <= set(classes[path].model_fields), path
        classes[path].model_validate(body)


def test_forms_of_answers_are_its_own(vllm: SimpleNamespace) -> None:
    """The answers that were written by hand for these tests are such as vLLM sends."""
    forms = [
        (vllm.ModelList, models("a", "b").body),
        (vllm.ErrorResponse, error(400, "no").body),
        (vllm.TokenizeResponse, tokens([1, 2]).body),
        (vllm.CompletionResponse, completion("x", 3, prompt_token_ids=[1, 2, 3])),
        (vllm.CompletionStreamResponse, completion_chunk("x", [1], [math.log(0.5)], "length")),
        (vllm.ChatCompletionStreamResponse, chat_chunk("x", "stop")),
    ]
    for form, value in forms:
        assert set(value) <= set(form.model_fields), form
        form.model_validate(value)
    chunk = vllm.CompletionStreamResponse.model_validate(completion_chunk("x", [1], [-0.5]))
    assert set(completion_chunk("x", [1], [-0.5])["choices"][0]) <= set(
        type(chunk.choices[0]).model_fields
    )
    assert chunk.choices[0].logprobs.token_logprobs == [-0.5]
    card = vllm.ModelList.model_validate(models().body).data[0]
    assert set(models().body["data"][0]) <= set(type(card).model_fields)
