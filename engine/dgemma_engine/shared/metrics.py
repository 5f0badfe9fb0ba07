"""What the shared engine counts, in Prometheus' text format."""

from __future__ import annotations

from pathlib import Path

from .desk import LATENCY_BOUNDS
from .server import SharedServer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(server: SharedServer) -> str:
    """All metrics, each with its help and type."""
    counts = server.desk.counts
    lines: list[str] = []

    def add(name: str, kind: str, doc: str, *samples: tuple[str, float]) -> None:
        lines.extend((f"# HELP dgemma_engine_{name} {doc}", f"# TYPE dgemma_engine_{name} {kind}"))
        lines.extend(f"dgemma_engine_{name}{suffix} {value}" for suffix, value in samples)

    is_loaded = server.desk.ready.done() and server.desk.ready.exception() is None
    add("loaded", "gauge", "Whether the model is loaded.", ("", int(is_loaded)))
    add("clients", "gauge", "Clients that are attached.", ("", server.num_clients))
    add("waiting", "gauge", "Requests whose turn has not come.", ("", server.desk.num_waiting))
    outcomes = ("filled", "withdrawn", "refused", "failed")
    samples = [(f'_total{{outcome="{one}"}}', float(counts.outcomes[one])) for one in outcomes]
    add("requests", "counter", "Requests that were answered, by outcome.", *samples)
    add("batches_total", "counter", "Turns of several fills.", ("", counts.batches))
    add("batched_fills_total", "counter", "Fills in these turns.", ("", counts.batched))
    buckets = [(f'_bucket{{le="{one}"}}', float(counts.buckets[one])) for one in LATENCY_BOUNDS]
    buckets += [('_bucket{le="+Inf"}', counts.finished)]
    buckets += [("_sum", counts.seconds), ("_count", counts.finished)]
    add("fill_seconds", "histogram", "From a request to its fill, waiting included.", *buckets)
    if (resident := _resident_bytes()) is not None:
        add("resident_bytes", "gauge", "Memory of the process.", ("", resident))
    return "\n".join(lines) + "\n"


def _resident_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), None)
