"""Somebody types, through the server as an editor runs it: how soon suggestions come, and how many.

Lines of held-out files are typed again, a key at a time; each key sends the edit, takes the request
before back, and asks anew. Measured at the client's end of stdio. Knows no engine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from ..document import UTF32, DocumentSnapshot
from ..postprocess.brackets import num_unmatched
from ..protocol import as_json
from .holes import EvalHole

_TIMEOUT = 60.0  # seconds; for the first answer, which waits for the model
_MIB = 2**20


@dataclass
class Typing:
    """What was seen. Times are milliseconds.

    Attributes:
        keys: that were typed; each asked once.
        engine_ms: from key to suggestion, where the engine made it.
        memory_ms: the same where it was the rest of an earlier one.
        silent_ms: from key to an answer without a suggestion.
        overhead_ms: of what the engine made, the time that was not the engine's.
        taken_back: requests that the next key came before.
        repeats: suggestions that repeat what follows.
        unclosed: suggestions that open what they do not close.
        right: suggestions that are the beginning of what was typed next.
        silent: how often nothing was offered, by reason, as the server counts.
        memory_mib: of the server and its engine, at the start and at the end; None where the
            system does not tell.
    """

    keys: int = 0
    engine_ms: list[float] = field(default_factory=list)
    memory_ms: list[float] = field(default_factory=list)
    silent_ms: list[float] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)
    taken_back: int = 0
    repeats: int = 0
    unclosed: int = 0
    right: int = 0
    silent: dict[str, int] = field(default_factory=dict)
    memory_mib: list[float | None] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As a table of a report."""
        shown = len(self.engine_ms) + len(self.memory_ms)
        return {
            "keys": self.keys,
            "shown %": _percent(shown, self.keys),
            "right %": _percent(self.right, shown),
            "without the engine %": _percent(len(self.memory_ms), shown),
            "taken back %": _percent(self.taken_back, self.keys),
            "ms to a suggestion, p50": _quantile(self.engine_ms, 0.50),
            "ms to a suggestion, p95": _quantile(self.engine_ms, 0.95),
            "ms to the rest of one, p95": _quantile(self.memory_ms, 0.95),
            "ms to silence, p95": _quantile(self.silent_ms, 0.95),
            "ms beside the engine, p95": _quantile(self.overhead_ms, 0.95),
            "repeat what follows": self.repeats,
            "leave open": self.unclosed,
            "MiB at the start": self.memory_mib[0] if self.memory_mib else None,
            "MiB at the end": self.memory_mib[-1] if self.memory_mib else None,
            "silent": dict(self.silent),
        }


async def type_holes(
    holes: Sequence[EvalHole],
    command: Sequence[str],
    *,
    interval: float,
    most_keys: int,
    on_key: Callable[[], None] = lambda: None,
) -> Typing:
    """Type what was cut out of holes, one after another.

    Args:
        holes: typed again and again until `most_keys` are reached.
        command: of the server, over stdio.
        interval: seconds between two keys; an answer that takes longer is taken back. 0 waits for
            every answer.
        most_keys: in all.
        on_key: called after each.
    """
    client = LanguageClient("dgemma-typing", "1")
    await client.start_io(*command)
    typing = Typing()
    try:
        await _introduce(client)
        number = 0
        while typing.keys < most_keys:
            hole = holes[number % len(holes)]
            uri = f"file:///typing/{number}.py"
            await _type_hole(client, uri, hole, typing, interval, most_keys, on_key)
            if number == 0:
                typing.memory_mib.append(_memory(client))  # the model is loaded, caches are warm
            number += 1
        typing.memory_mib.append(_memory(client))
        typing.silent = (await _status(client))["silent"]
        await client.shutdown_async(None)
        client.exit(None)
    finally:
        await client.stop()  # type: ignore[no-untyped-call]  # pygls has no type for it
    return typing


async def _introduce(client: LanguageClient) -> None:
    capabilities = types.ClientCapabilities(
        general=types.GeneralClientCapabilities(
            position_encodings=[types.PositionEncodingKind.Utf32]
        ),
        text_document=types.TextDocumentClientCapabilities(
            inline_completion=types.InlineCompletionClientCapabilities()
        ),
        workspace=types.WorkspaceClientCapabilities(
            execute_command=types.ExecuteCommandClientCapabilities()
        ),
    )
    await client.initialize_async(types.InitializeParams(capabilities=capabilities))
    client.initialized(types.InitializedParams())


async def _type_hole(
    client: LanguageClient,
    uri: str,
    hole: EvalHole,
    typing: Typing,
    interval: float,
    most_keys: int,
    on_key: Callable[[], None],
) -> None:
    text = hole.before + hole.after
    item = types.TextDocumentItem(uri, "python", 0, text)
    client.text_document_did_open(types.DidOpenTextDocumentParams(item))
    pending: asyncio.Task[None] | None = None
    for typed in range(len(hole.middle)):
        if typing.keys == most_keys:
            break
        began = time.monotonic()
        if pending is not None and not pending.done():
            pending.cancel()
            typing.taken_back += 1
        before = hole.before + hole.middle[:typed]
        snapshot = DocumentSnapshot(uri, typed, "python", before + hole.after)
        place = snapshot.lines.position_at(len(before), UTF32)
        client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(typed + 1, uri),
                [
                    types.TextDocumentContentChangePartial(
                        types.Range(place, place), hole.middle[typed]
                    )
                ],
            )
        )
        typing.keys += 1
        pending = asyncio.create_task(_ask(client, uri, hole, typed + 1, typing))
        is_first = typing.keys == 1
        if interval == 0 or is_first:
            await asyncio.wait([pending], timeout=_TIMEOUT)
        else:
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - began)))
        if is_first:
            for times in (typing.engine_ms, typing.overhead_ms, typing.silent_ms):
                times.clear()  # it waited for the model
        on_key()
    if pending is not None and not pending.done():
        await asyncio.wait([pending], timeout=_TIMEOUT)
    identifier = types.TextDocumentIdentifier(uri)
    client.text_document_did_close(types.DidCloseTextDocumentParams(identifier))


async def _ask(
    client: LanguageClient, uri: str, hole: EvalHole, typed: int, typing: Typing
) -> None:
    before, rest = hole.before + hole.middle[:typed], hole.middle[typed:]
    snapshot = DocumentSnapshot(uri, typed, "python", before + rest + hole.after)
    params = types.InlineCompletionParams(
        context=types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic),
        text_document=types.TextDocumentIdentifier(uri),
        position=snapshot.lines.position_at(len(before), UTF32),
    )
    began = time.monotonic()
    request = client.protocol.send_request(types.TEXT_DOCUMENT_INLINE_COMPLETION, params)
    try:
        # Shielded: the server answers what is taken back too, and pygls wants to hear it.
        waiting = asyncio.wrap_future(request)
        waiting.add_done_callback(lambda future: future.cancelled() or future.exception())
        answer = await asyncio.shield(waiting)
    except asyncio.CancelledError:
        ids = [key for key, future in client.protocol._request_futures.items() if future is request]
        for request_id in ids:
            client.cancel_request(types.CancelParams(request_id))
        raise
    except JsonRpcException:
        return
    elapsed = (time.monotonic() - began) * 1000
    items = getattr(answer, "items", None) or []
    if not items:
        typing.silent_ms.append(elapsed)
        return
    text = str(items[0].insert_text)
    status = await _status(client)
    if status["lastEngineMs"] is None:
        typing.memory_ms.append(elapsed)
    else:
        typing.engine_ms.append(elapsed)
        typing.overhead_ms.append(elapsed - status["lastEngineMs"])
    typing.right += rest.startswith(text)
    typing.repeats += _repeats(text, hole.after)
    line = before.rpartition("\n")[2]
    following = hole.after.partition("\n")[0]
    typing.unclosed += num_unmatched(line + text + following) > num_unmatched(line + following)


async def _status(client: LanguageClient) -> dict[str, Any]:
    params = types.ExecuteCommandParams("dgemma.status")
    answer = as_json(await client.workspace_execute_command_async(params))
    assert isinstance(answer, dict)
    return answer


def _repeats(text: str, after: str) -> bool:
    """Whether a suggestion ends in the rest of the line, or in the line below."""
    rest, _, below = after.partition("\n")
    if rest.strip():
        return text.rstrip().endswith(rest.strip())
    next_line = below.lstrip("\n").partition("\n")[0].strip()
    return len(next_line) > 1 and text.rpartition("\n")[2].strip() == next_line


def _memory(client: LanguageClient) -> float | None:
    """MiB that the server and the processes below it hold, where /proc tells."""
    server = client._server
    if server is None or not sys.platform.startswith("linux"):
        return None
    total, waiting = 0.0, [server.pid]
    while waiting:
        pid = waiting.pop()
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            # A child belongs to the thread that started it.
            for thread in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
        total += pages * 4096 / _MIB
    return round(total, 1)


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    if len(values) == 1:
        return round(values[0], 1)
    return round(statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1], 1)
