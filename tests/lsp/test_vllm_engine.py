"""The language server with an engine on a team's server: what reaches it, and when."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path

import pytest

from dgemma_engine import Cancelled, EngineUnavailable, InfillRequest
from dgemma_engine.vllm import LEVELS, VllmEngine
from dgemma_lsp.engines import build_engine
from dgemma_lsp.scheduler import EngineState, FillScheduler
from dgemma_lsp.settings import Settings, schema

from ..engine.replay_server import Asked, Reply, chat_chunk, models, serving, wait_until
from ..engine.tiny import CHAT_TOKENS, build_tokenizer

KEY = "team-key-0123456789"
VARIABLE = "DGEMMA_TEST_KEY"
REQUEST = InfillRequest("a = ", "\n")


def chats(asked: Asked) -> Reply:
    if asked.path == "/v1/models":
        return models("team/small", "team/large")
    if asked.path == "/v1/chat/completions":
        return Reply(events=[chat_chunk("1", "stop")])
    return Reply({"detail": "Not Found"}, 404)


def settings(url: str, **changes: str) -> Settings:
    chosen = Settings(engine="vllm", engine_url=url, engine_key_variable=VARIABLE, model="m")
    return dataclasses.replace(chosen, **changes)


def built(url: str, **changes: str) -> VllmEngine:
    engine = build_engine(settings(url, **changes), lambda error: None)
    assert isinstance(engine, VllmEngine)
    return engine


def test_settings_become_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """URL, model and key are the settings'; the key comes from the variable they name."""
    monkeypatch.setenv(VARIABLE, KEY)
    with serving(chats) as server:
        engine = built(f"{server.url}/v1", model="team/large")
        assert engine.fill(REQUEST).text == "1"
        engine.close()
        assert server.asked[-1].body["model"] == "team/large"
        assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is none, and a server that wants one has it named."""
    monkeypatch.setenv(VARIABLE, "")
    refusing = Reply({"error": "Unauthorized"}, 401)
    with serving(lambda asked: refusing) as server:
        with pytest.raises(EngineUnavailable, match=f"the environment variable {VARIABLE}"):
            built(server.url)
        assert "authorization" not in server.asked[0].headers


def test_a_folder_gives_the_tokenizer_and_the_name(tmp_path: Path) -> None:
    """Of several models the one is asked that is called like the folder."""
    folder = tmp_path / "large"
    folder.mkdir()
    build_tokenizer(CHAT_TOKENS).save(str(folder / "tokenizer.json"))
    with serving(chats) as server:
        engine = built(server.url, model=str(folder))
        assert engine.info.model == "team/large"
        engine.close()


def test_a_level_may_be_asked_for() -> None:
    """The setting has the levels there are; one that the server does not know is an error."""
    assert schema()["engineLevel"]["enum"] == ["auto", *LEVELS]
    with (
        serving(chats) as server,
        pytest.raises(EngineUnavailable, match="suffix: it takes no suffix"),
    ):
        built(server.url, model="team/small", engine_level="suffix")


async def test_the_newest_request_closes_the_stream_of_the_one_before() -> None:
    """At most one request of a document is on the server: the older is gone before the next."""
    hanging = threading.Event()
    hanging.set()

    def slow(asked: Asked) -> Reply:
        if asked.path == "/v1/chat/completions" and hanging.is_set():
            return Reply(events=[], hangs=True)
        return chats(asked)

    with serving(slow) as server:
        scheduler = FillScheduler(
            lambda on_death: built(server.url, model="team/small"),
        )
        fills = []

        def num_asked() -> int:
            return len(server.asked_of("/v1/chat/completions"))

        for number in range(1, 4):
            fills.append(
                asyncio.create_task(scheduler.fill(REQUEST, document="one", while_typing=True))
            )
            while num_asked() < number:
                await asyncio.sleep(0.01)
        hanging.clear()
        fills.append(
            asyncio.create_task(scheduler.fill(REQUEST, document="one", while_typing=True))
        )
        for withdrawn in fills[:-1]:
            with pytest.raises(Cancelled, match="newer request"):
                await withdrawn
        assert (await fills[-1]).text == "1"
        assert await asyncio.to_thread(wait_until, lambda: server.num_left == 3)
        assert await asyncio.to_thread(scheduler.close, 5.0)


async def test_a_server_that_is_down_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The editor may be opened before the server: a later fill finds it, without a restart."""
    monkeypatch.setattr("dgemma_engine.vllm.engine._REST", 0.0)
    is_up = False

    def answer(asked: Asked) -> Reply:
        return chats(asked) if is_up else Reply({"error": {"message": "loading"}}, 500)

    with serving(answer) as server:
        scheduler = FillScheduler(lambda on_death: built(server.url, model="team/small"))
        with pytest.raises(EngineUnavailable, match="loading"):
            await scheduler.fill(REQUEST, document="one", while_typing=True)
        is_up = True
        assert (await scheduler.fill(REQUEST, document="one", while_typing=True)).text == "1"
        while scheduler.status.state is not EngineState.READY:  # it is told a moment later
            await asyncio.sleep(0.01)
        assert scheduler.status.info is not None
        assert scheduler.status.info.strategy == "chat"
        assert await asyncio.to_thread(scheduler.close, 5.0)
