"""Score a checkpoint on holes in held-out packages, beside left-to-right decoding of its weights.

    python -m training.evaluate --corpus DIR --model FOLDER --holes 200 --out scores.json

Four ways to fill the same holes: `diffusion`, the engine as an editor calls it; `diffusion, length
known`, a hole of exactly as many slots as its text has tokens; `fim`, greedy left to right with the
suffix in the prompt, until the end mark; `left to right`, greedy without the suffix, which is told
where to stop (at the line's end; for blocks, the true length).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as TokenizerBackend
from torch import Tensor

from dgemma_engine import HoleKind, InfillRequest
from dgemma_engine.attention import build_rotary
from dgemma_engine.cache import KVCache
from dgemma_engine.canvas import EOM_ID, EXACT_ID, PAD_ID, Canvas, marked_canvas, marked_prompt
from dgemma_engine.denoise import denoise
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.masks import encoder_mask
from dgemma_engine.special_tokens import LANGUAGE_TAGS
from dgemma_engine.strategies.markers import MarkerLayout
from dgemma_engine.strategies.plan import heal, last_tokens, token_mask
from dgemma_engine.tokenizer import Tokenizer

from .corpus import read_documents
from .documents import TokenizedDocument, tokenize
from .spans import sample_span

BUCKETS = {
    "rest of line": ("rest_of_line", HoleKind.LINE),
    "whole line": ("whole_line", HoleKind.LINE),
    "block": ("block", HoleKind.BLOCK),
}
_MAX_TOKENS = {HoleKind.LINE: 31, HoleKind.BLOCK: 63}
_MAX_CHARS = {HoleKind.LINE: 120, HoleKind.BLOCK: 220}
# A word is cut by the cursor in this share of the rest-of-line holes.
_INSIDE_WORD_SHARE = 0.3
_CONTEXT_CHARS = 6000


@dataclass(frozen=True)
class EvalHole:
    """A hole in a held-out file: the text that was there is `middle`."""

    source: str
    kind: HoleKind
    prefix: str
    middle: str
    suffix: str

    def request(self, seed: int = 0) -> InfillRequest:
        return InfillRequest(
            self.prefix,
            self.suffix,
            self.kind,
            language_id="python",
            max_tokens=_MAX_TOKENS[self.kind],
            seed=seed,
        )


def sample_holes(documents: list[TokenizedDocument], bucket: str, count: int) -> list[EvalHole]:
    """Holes of a bucket, the same ones every time; none on lines that training files share."""
    span_kind, kind = BUCKETS[bucket]
    rng = np.random.default_rng(sum(map(ord, bucket)))
    holes: list[EvalHole] = []
    while len(holes) < count:
        document = documents[int(rng.integers(len(documents)))]
        anchor = int(document.token_starts[int(rng.integers(document.num_tokens))])
        if span_kind == "rest_of_line" and rng.random() < _INSIDE_WORD_SHARE:
            anchor += 1
        span = sample_span(document, anchor, span_kind, rng)
        if span is None:
            continue
        start, end = span
        middle = document.text[start:end]
        # The editor has written the line break and the indentation before the cursor.
        start += len(middle) - len(middle.lstrip()) if middle.startswith("\n") else 0
        middle = document.text[start:end]
        lines = range(document.line_at(start), document.line_at(end) + 1)
        is_leaked = not document.leaked_lines.isdisjoint(lines)
        is_block = len(lines) > 1
        if is_leaked or not middle.strip() or is_block != (kind is HoleKind.BLOCK):
            continue
        if len(middle) > _MAX_CHARS[kind]:
            continue
        text = document.text
        prefix, suffix = text[max(0, start - _CONTEXT_CHARS) : start], text[end:][:_CONTEXT_CHARS]
        holes.append(EvalHole(document.source, kind, prefix, middle, suffix))
    return holes


class LeftToRight:
    """Greedy decoding by the encoder of the same weights, with the same healing of the cut."""

    def __init__(self, engine: DiffusionEngine) -> None:
        assert isinstance(engine, DiffusionEngine)
        self._model, self._tokenizer = engine.model, engine.tokenizer
        self._layout = MarkerLayout()
        size, device = self._tokenizer.vocab_size, self._model.device
        special = [i for i in self._tokenizer.special_ids if i != EOM_ID]
        self._banned = token_mask(special, size, device)
        self._line_breaks = frozenset(self._tokenizer.ids_containing(b"\n"))

    @torch.no_grad()
    def fill(self, hole: EvalHole, use_suffix: bool) -> str:
        """The text that greedy decoding puts into a hole."""
        tokenizer = self._tokenizer
        prefix_ids = last_tokens(
            tokenizer, tokenizer.encode(hole.prefix), self._layout.prefix_tokens
        )
        prefix_ids, healed = heal(tokenizer, prefix_ids)
        suffix_ids: list[int] = []
        if use_suffix:
            suffix_ids = tokenizer.encode(hole.suffix)[: self._layout.suffix_tokens]
        tag_id = tokenizer.token_id(LANGUAGE_TAGS["python"])
        prompt = marked_prompt(tag_id, suffix_ids, prefix_ids)
        limit = _MAX_TOKENS[hole.kind]
        if not use_suffix and hole.kind is HoleKind.BLOCK:
            limit = len(tokenizer.encode(hole.middle))
        cache = self._model.new_cache(batch_size=1)
        filled: list[int] = []
        pending = prompt
        while len(filled) < limit:
            logits = self._next_logits(pending, cache)
            logits[self._banned] = -torch.inf
            if not use_suffix:
                logits[EOM_ID] = -torch.inf
            if healed and not filled:
                allowed = tokenizer.ids_starting_with(healed)
                logits[~token_mask(allowed, tokenizer.vocab_size, logits.device)] = -torch.inf
            token = int(logits.argmax())
            # The first token may be the line break before the cursor, taken back by the healing.
            is_healed = bool(healed) and not filled
            ends_line = hole.kind is HoleKind.LINE and token in self._line_breaks and not is_healed
            if token == EOM_ID or ends_line:
                break
            filled.append(token)
            pending = [token]
        text = tokenizer.decode_bytes(filled).removeprefix(healed).decode("utf-8", "ignore")
        return text.rstrip()

    def _next_logits(self, token_ids: list[int], cache: KVCache) -> Tensor:
        """Encode some more tokens; the logits (V,) of the one after them.

        As `prefill`, which has no use for what its last layer would give out.
        """
        model, ids = self._model, torch.tensor([token_ids])
        hidden = F.embedding(ids, model.embed_tokens.weight) * model.config.hidden_size**0.5
        positions = torch.arange(cache.length, cache.length + len(token_ids))[None]
        for index, layer in enumerate(model.layers):
            window = model.config.sliding_window if layer.config.is_sliding else None
            rotary = build_rotary(layer.config, positions, hidden.dtype)
            projected = layer.self_attn.project(layer.input_layernorm(hidden), rotary)
            keys, values = cache.write(index, projected.key, projected.value)
            mask = encoder_mask(cache.length, len(token_ids), window, hidden.device)
            attended = layer.self_attn.attend(projected.query, keys, values, mask)
            hidden = layer.finish(hidden, attended, layer.encoder_layer_scalar)
        cache.advance(len(token_ids))
        return model.logits(hidden[0, -1])


def fill_known_length(engine: DiffusionEngine, hole: EvalHole) -> str:
    """The engine's fill, were it told how many tokens belong into the hole."""
    tokenizer, model = engine.tokenizer, engine.model
    plan = engine.strategy.plan(hole.request())
    healed = plan.healed.decode("utf-8", "ignore")
    length = len(tokenizer.encode(healed + hole.middle))
    layout = MarkerLayout()
    canvas_length = max(layout.canvas_length(length), length + 2)
    suffix_ids = tokenizer.encode(hole.suffix)[: layout.suffix_tokens]
    token_ids, hole_mask = marked_canvas(length, suffix_ids, canvas_length, EXACT_ID)
    banned = plan.canvas.banned
    if banned is not None:
        banned = banned.clone()
        banned[[EOM_ID, PAD_ID]] = True
    canvas = Canvas(
        torch.tensor([token_ids]), torch.tensor([hole_mask]), banned, plan.canvas.first_allowed
    )
    cache = model.prefill(torch.tensor([plan.prompt_ids]))
    generator = torch.Generator().manual_seed(0)
    *_, last = denoise(model, cache, canvas, model.sampler_defaults, generator, [])
    filled = last.argmax_canvas[0, canvas.hole_mask[0]].tolist()
    return tokenizer.decode_bytes(filled).removeprefix(plan.healed).decode("utf-8", "ignore")


def edit_similarity(left: str, right: str) -> float:
    """1 - Levenshtein distance / longer length; 1 for two empty texts."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    longer = max(len(left), len(right))
    return 1.0 - row[-1] / longer if longer else 1.0


def score(holes: list[EvalHole], fills: list[str], tokenizer: Tokenizer) -> dict[str, float]:
    """Percentages over the holes, and mean lengths in tokens."""
    exact, similar, first, same_length, near_length, lengths = [], [], [], [], [], []
    for hole, fill in zip(holes, fills, strict=True):
        expected, actual = hole.middle.strip(), fill.strip()
        expected_ids, actual_ids = tokenizer.encode(expected), tokenizer.encode(actual)
        exact.append(expected == actual)
        similar.append(edit_similarity(expected, actual))
        first.append(expected_ids[:1] == actual_ids[:1])
        same_length.append(len(expected_ids) == len(actual_ids))
        near_length.append(abs(len(expected_ids) - len(actual_ids)) <= 1)
        lengths.append(len(actual_ids))
    return {
        "exact_match": _percent(exact),
        "edit_similarity": _percent(similar),
        "first_token": _percent(first),
        "exact_length": _percent(same_length),
        "length_within_1": _percent(near_length),
        "mean_tokens": round(statistics.mean(lengths), 1),
        "true_mean_tokens": round(
            statistics.mean(len(tokenizer.encode(h.middle.strip())) for h in holes), 1
        ),
    }


def _percent(values: Iterable[float]) -> float:
    return round(100.0 * statistics.mean(map(float, values)), 1)


def evaluate(
    engine: DiffusionEngine, documents: list[TokenizedDocument], count: int
) -> dict[str, Any]:
    """Scores by bucket and method, and a few fills as they came."""
    left_to_right = LeftToRight(engine)
    results: dict[str, Any] = {"buckets": {}, "examples": []}
    for bucket in BUCKETS:
        holes = sample_holes(documents, bucket, count)
        passes: list[int] = []

        def diffuse(hole: EvalHole, passes: list[int] = passes) -> str:
            result = engine.fill(hole.request())
            passes.append(result.num_passes)
            return result.text

        methods: dict[str, Callable[[EvalHole], str]] = {
            "diffusion": diffuse,
            "diffusion, length known": lambda hole: fill_known_length(engine, hole),
            "fim": lambda hole: left_to_right.fill(hole, use_suffix=True),
            "left to right": lambda hole: left_to_right.fill(hole, use_suffix=False),
        }
        results["buckets"][bucket] = {}
        for name, method in methods.items():
            started = time.monotonic()
            fills = [method(hole) for hole in holes]
            scores = score(holes, fills, engine.tokenizer)
            scores["mean_ms"] = round(1000 * (time.monotonic() - started) / len(holes), 1)
            if name == "diffusion":
                scores["mean_passes"] = round(statistics.mean(passes), 2)
                results["examples"] += [
                    {
                        "bucket": bucket,
                        "source": hole.source,
                        "prefix": hole.prefix[-60:],
                        "expected": hole.middle,
                        "fill": fill,
                        "suffix": hole.suffix[:40],
                    }
                    for hole, fill in list(zip(holes, fills, strict=True))[:8]
                ]
            results["buckets"][bucket][name] = {"holes": len(holes), **scores}
    results["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return results


def score_table(results: dict[str, Any]) -> str:
    """The scores as Markdown."""
    rows = [
        "| holes | method | exact match % | edit similarity % | first token % "
        "| exact length % | tokens (true) | passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bucket, methods in results["buckets"].items():
        for method, s in methods.items():
            rows.append(
                f"| {bucket} ({s['holes']}) | {method} | {s['exact_match']} "
                f"| {s['edit_similarity']} | {s['first_token']} | {s['exact_length']} "
                f"| {s['mean_tokens']} ({s['true_mean_tokens']}) | {s.get('mean_passes', '')} |"
            )
    return "\n".join(rows) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by corpus")
    parser.add_argument("--model", default="default", help="checkpoint folder")
    parser.add_argument("--holes", type=int, default=200, help="per bucket")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="scores as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    engine = build_engine(options.model, device="cpu")
    backend = TokenizerBackend.from_file(str(options.corpus / "tokenizer.json"))
    documents = tokenize(read_documents(options.corpus / "documents.jsonl", "held_out"), backend)
    results = evaluate(engine, documents, options.holes)
    print(score_table(results))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
