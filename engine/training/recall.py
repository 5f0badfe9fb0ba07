"""Fit how a packed model weighs what it recalls, and write it into the folder.

    python -m training.recall --model FOLDER --corpus DIR [--holes 1200]

Holes are cut out of documents of the training split, each with the rest of its document and those
of its folder nearby, as an editor gives them. The six numbers of `RecallWeights` are those by which
the true texts are likeliest. A small model hardly knows its training documents by heart; where one
does, this makes it trust its memory too little.
"""

from __future__ import annotations

import argparse
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dgemma_engine import HoleKind, InfillRequest
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.recall import END, Recall, RecallWeights, Votes

from .corpus import Document, read_documents
from .documents import tokenize
from .spans import sample_span

# Where the descent begins.
START = RecallWeights(length=1.0, distance=0.1, bias=-1.0, match=0.5, agreement=1.0, certainty=-1.0)
_KINDS = ("rest_of_line", "mid_line", "whole_line", "bracket", "expression")
_PREFIX_CHARS, _SUFFIX_CHARS, _NEARBY_CHARS = 8000, 2000, 400_000  # as the server gives
_LONGEST_MIDDLE = 31  # tokens
_HOLES_PER_DOCUMENT = 4
_STEPS = 400


class Place(NamedTuple):
    """A token of a hole's true text, or its end.

    Attributes:
        chance: that the model gives it, 0 .. 1.
        certainty: that the model gives what it finds likeliest.
        token_id: the token, or `END`.
        votes: of the memory.
    """

    chance: float
    certainty: float
    token_id: int
    votes: Votes | None


def cut_holes(
    documents: Sequence[Document], tokenizer: Tokenizer, count: int, seed: int = 0
) -> Iterator[tuple[InfillRequest, str]]:
    """Requests as an editor makes them, and the text that was there."""
    rng = np.random.default_rng(seed)
    folders: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        folders[_folder(document)].append(document)
    sizes = np.array([len(document.text) for document in documents], dtype=np.float64)
    for _ in range(-(-count // _HOLES_PER_DOCUMENT)):
        document = documents[int(rng.choice(len(documents), p=sizes / sizes.sum()))]
        (tokens,) = tokenize([document], tokenizer)
        text, num_found = document.text, 0
        others = [other.text for other in folders[_folder(document)] if other is not document]
        for _ in range(100):
            anchor = int(tokens.token_starts[int(rng.integers(tokens.num_tokens))])
            span = sample_span(tokens, anchor, str(rng.choice(_KINDS)), rng)
            if span is None or "\n" in text[slice(*span)]:
                continue
            start, end = span
            window = max(0, start - _PREFIX_CHARS), end + _SUFFIX_CHARS
            yield (
                InfillRequest(
                    text[window[0] : start],
                    text[end : window[1]],
                    HoleKind.LINE,
                    document.language,
                    nearby=_within([text[: window[0]], text[window[1] :], *others]),
                ),
                text[start:end],
            )
            num_found += 1
            if num_found == _HOLES_PER_DOCUMENT:
                break


def _folder(document: Document) -> str:
    return f"{document.package}/{posixpath.dirname(document.path)}"


def _within(texts: Sequence[str]) -> tuple[str, ...]:
    kept, room = [], _NEARBY_CHARS
    for text in texts:
        if text and room > 0:
            kept.append(text[:room])
            room -= len(text)
    return tuple(kept)


@torch.no_grad()
def look_at(
    engine: DiffusionEngine, recall: Recall, request: InfillRequest, middle: str
) -> list[Place]:
    """Every token of a true text, as the model and the memory see it; none of one too long."""
    plan = engine.strategy.plan(request)
    assert plan.rules is not None, "only models that decode left to right recall"
    token_ids = engine.tokenizer.encode(plan.healed.decode("utf-8", "ignore") + middle)
    if len(token_ids) > _LONGEST_MIDDLE:
        return []
    cache, _ = engine.caches.of("").prompt.encode(plan.prompt_ids)
    row = torch.tensor([[plan.prompt_ids[-1], *token_ids]], device=engine.model.device)
    logits = engine.model.continuation_logits(row, cache, len(plan.prompt_ids) - 1)[0]
    recollection = recall.recollection(plan, request)
    places = []
    for size, wanted in enumerate([*token_ids, END]):
        going_on, end = plan.rules.log_probabilities(logits[size : size + 1], is_first=size == 0)
        going_on, end = going_on[0], end[0]
        chance = end if wanted == END else going_on[wanted]
        best = max(float(going_on.max()), float(end))
        votes = recollection.votes(token_ids[:size], going_on, end)
        places.append(Place(float(chance.exp()), float(np.exp(best)), wanted, votes))
    return places


def fit(places: Sequence[Place], steps: int = _STEPS) -> tuple[RecallWeights, float, float]:
    """The weights by which the true texts are likeliest.

    Returns:
        the weights, and the mean loss of a token without and with them, in nats.
    """
    known = [place for place in places if place.votes is not None]
    votes = [place.votes for place in known if place.votes is not None]
    rows = torch.repeat_interleave(
        torch.arange(len(known)), torch.tensor([len(own.lengths) for own in votes])
    )
    token_ids = torch.from_numpy(np.concatenate([own.token_ids for own in votes])).long()
    lengths = torch.from_numpy(np.concatenate([own.lengths for own in votes])).float()
    distances = torch.from_numpy(np.concatenate([own.distances for own in votes])).float()
    wanted = torch.tensor([place.token_id for place in known])
    chances = torch.tensor([place.chance for place in known]).clamp_min(1e-9)
    certainty = torch.tensor([place.certainty for place in known])
    longest = torch.zeros(len(known)).scatter_reduce(0, rows, lengths, "amax")
    # Votes for the same token of a row are one group.
    _, group = torch.unique(torch.stack((rows, token_ids)), dim=1, return_inverse=True)
    row_of_group = torch.zeros(int(group.max()) + 1, dtype=torch.int64).scatter(0, group, rows)
    is_wanted = (token_ids == wanted[rows]).float()
    alone = [-np.log(max(place.chance, 1e-9)) for place in places if place.votes is None]

    def losses(values: Tensor) -> Tensor:
        length, distance, bias, match, agreement, trust_in_model = values.unbind()
        heights = length * lengths - distance * torch.log1p(distances)
        top = torch.full((len(known),), -torch.inf)
        top = top.scatter_reduce(0, rows, heights.detach(), "amax")
        weights = torch.exp(heights - top[rows])
        sums = torch.zeros(len(known)).scatter_add(0, rows, weights)
        recalled = torch.zeros(len(known)).scatter_add(0, rows, weights * is_wanted) / sums
        groups = torch.zeros(len(row_of_group)).scatter_add(0, group, weights)
        agreed = torch.zeros(len(known)).scatter_reduce(0, row_of_group, groups, "amax") / sums
        trust = torch.sigmoid(
            bias + match * longest.log() + agreement * agreed + trust_in_model * certainty
        )
        return -((1 - trust) * chances + trust * recalled).log()

    names = [item.name for item in fields(RecallWeights)]
    values = torch.tensor([getattr(START, name) for name in names], requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        losses(values).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        after = float(losses(values).sum()) + sum(alone)
        before = float(-chances.log().sum()) + sum(alone)
    found = RecallWeights(**dict(zip(names, values.tolist(), strict=True)))
    return found, before / len(places), after / len(places)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="training.recall", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder written by pack")
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by corpus")
    parser.add_argument("--holes", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    engine = build_engine(str(options.model), device="cpu", dtype="float32")
    recall = Recall(engine.tokenizer, START)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    documents = read_documents(options.corpus / "documents.jsonl")
    train = [document for document in documents if document.split == "train" and document.text]
    places: list[Place] = []
    for request, middle in cut_holes(train, tokenizer, options.holes, options.seed):
        places += look_at(engine, recall, request, middle)
    weights, before, after = fit(places)
    path = options.model / "infill_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["recall"] = weights.to_json()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{len(places)} tokens: {before:.3f} nats without recall, {after:.3f} with {weights}")


if __name__ == "__main__":
    main()
