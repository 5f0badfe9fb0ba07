"""Many clients of a shared engine at once, all on one event loop, speaking the wire themselves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgemma_engine import InfillRequest
from dgemma_engine.shared import wire

# A file, what each client types at its end, a character a request, and what follows.
SOURCE = '''\
"""Bookings of a small hotel."""

from dataclasses import dataclass


@dataclass
class Room:
    number: int
    beds: int
    price: float


def total(rooms, nights):
    """What the rooms cost for some nights."""
    return sum(room.price for room in rooms) * nights


def cheapest(rooms, beds):
    """The cheapest room with so many beds, None if there is none."""
    fitting = [room for room in rooms if room.beds >= beds]
    return min(fitting, key=lambda room: room.price, default=None)


'''
TYPED = """\
def most_beds(rooms):
    best = 0
    for room in rooms:
        best = max(best, room.beds)
    return best
"""
REST = """


def is_large(room):
    return room.beds > 3
"""


@dataclass
class Storm:
    """What came of it.

    Attributes:
        outcomes: how often each came: "filled", or the kind of an error.
        filled_seconds: from sending a request to its fill.
        answered_seconds: to any answer.
        unanswered: requests without an answer ten seconds after the last one was sent.
        reasons: texts of the errors.
        filled_clients: who got a fill.
        num_sent: requests.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    filled_seconds: list[float] = field(default_factory=list)
    answered_seconds: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    filled_clients: set[int] = field(default_factory=set)
    num_sent: int = 0
    unanswered: int = 0

    def percentile(self, seconds: list[float], percent: int) -> float:
        return sorted(seconds)[min(len(seconds) - 1, len(seconds) * percent // 100)]

    def report(self) -> str:
        filled, answered = self.filled_seconds, self.answered_seconds
        return (
            f"{self.num_sent} requests, {dict(self.outcomes)}, {self.unanswered} unanswered; "
            f"{len(self.filled_clients)} clients got fills; "
            f"filled: p50 {self.percentile(filled, 50) * 1000:.0f} ms, "
            f"p95 {self.percentile(filled, 95) * 1000:.0f} ms; "
            f"any answer: p95 {self.percentile(answered, 95) * 1000:.0f} ms; {dict(self.reasons)}"
        )


async def run_storm(path: Path, *, clients: int, rate: float, seconds: float) -> Storm:
    """`clients` clients, each of which asks `rate` times a second, whatever became of the last."""
    storm = Storm()
    await asyncio.gather(
        *(_client(path, storm, number, clients, rate, seconds) for number in range(clients))
    )
    return storm


async def _client(
    path: Path, storm: Storm, number: int, clients: int, rate: float, seconds: float
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    sent: dict[int, float] = {}

    async def read() -> dict[str, Any]:
        return wire.parse(await reader.readexactly(wire.frame_length(await reader.readexactly(4))))

    challenge = await read()
    hello = {
        "type": "hello",
        "protocol": wire.PROTOCOL,
        "proof": wire.proof(b"", "client", challenge["nonce"]),
        "nonce": "n",
        "label": f"storm {number}",
    }
    writer.write(wire.frame(hello))
    while (await read())["type"] != "ready":
        pass

    async def listen() -> None:
        while True:
            message = await read()
            kind = message["type"]
            if kind not in ("result", "error"):
                continue
            took = time.monotonic() - sent.pop(message["id"])
            storm.answered_seconds.append(took)
            if kind == "result":
                storm.outcomes["filled"] += 1
                storm.filled_seconds.append(took)
                storm.filled_clients.add(number)
            else:
                storm.outcomes[message["error"]["kind"]] += 1
                storm.reasons[message["error"]["message"]] += 1

    listening = asyncio.ensure_future(listen())
    await asyncio.sleep(number / clients / rate)
    start, index = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        typed = TYPED[: index % len(TYPED)]
        request = InfillRequest(f"# client {number}\n{SOURCE}{typed}", REST, language_id="python")
        sent[index] = time.monotonic()
        storm.num_sent += 1
        message = {"type": "fill", "id": index, "request": wire.to_json(request), "seconds": 3.0}
        writer.write(wire.frame(message))
        await writer.drain()
        index += 1
        await asyncio.sleep(max(0.0, start + index / rate - time.monotonic()))
    end = time.monotonic() + 10
    while sent and time.monotonic() < end:
        await asyncio.sleep(0.02)
    storm.unanswered += len(sent)
    listening.cancel()
    writer.close()
