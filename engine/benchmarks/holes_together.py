"""Several holes at once beside one after another: the same holes, the same weights, one run.

    python engine/benchmarks/holes_together.py FOLDER [--model FOLDER] [--count 60] [--holes 2]

Ends of lines are taken out of Python files that the model has not seen, a few lines apart, and
filled in four ways. Prints the share that is exactly right, the mean similarity, and milliseconds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rapidfuzz.distance import Indel

from dgemma_engine import HoleKind, InfillEngine, InfillRequest, JointRequest, load_engine
from dgemma_engine.errors import HolesTooFarApart

# Two holes of a group are so many lines apart at most.
_MOST_LINES_APART = 5
_CONTEXT_CHARS = 2000
# Where the end of a line may begin, and what may be missing there.
_CUT = re.compile(r"(?<=[=(,:.]) ?(?=\S)|(?<=return )|(?<= in )")
_LENGTHS = (4, 40)  # characters

Texts = tuple[str, ...]


def groups(folder: Path, num_holes: int, seed: int) -> Iterator[tuple[Texts, Texts]]:
    """Pieces of text, and what is missing between them; one group a file at most."""
    draw = random.Random(seed)
    files = sorted(folder.rglob("*.py"))
    draw.shuffle(files)
    for file in files:
        text = file.read_text("utf-8", errors="ignore")
        lines = list(itertools.accumulate(map(len, text.splitlines(True)), initial=0))
        if len(lines) < 40:
            continue
        line = draw.randrange(15, len(lines) - 20)
        holes: list[tuple[int, int]] = []
        for start, end in itertools.pairwise(lines[line : line + num_holes * _MOST_LINES_APART]):
            whole = text[start:end].rstrip("\n")
            cuts = [
                match.end()
                for match in _CUT.finditer(whole)
                if _LENGTHS[0] <= len(whole) - match.end() <= _LENGTHS[1]
            ]
            if cuts and "#" not in whole and '"""' not in whole:
                holes.append((start + draw.choice(cuts), start + len(whole)))
        if len(holes) < num_holes:
            continue
        chosen = sorted(draw.sample(holes, num_holes))
        edges = [chosen[0][0] - _CONTEXT_CHARS, *itertools.chain(*chosen)]
        edges.append(chosen[-1][1] + _CONTEXT_CHARS)
        pieces = [text[max(0, a) : b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        yield tuple(pieces), tuple(text[a:b] for a, b in chosen)


def in_turn(engine: InfillEngine, pieces: Texts, *, rounds: int) -> Texts:
    """One after another, the others in place; from the second round on as revisions."""
    fills = [""] * (len(pieces) - 1)
    for number in range(rounds):
        for hole in range(len(fills)):
            joined = [*itertools.chain(*zip(pieces, [*fills, ""], strict=True))]
            request = InfillRequest(
                "".join(joined[: 2 * hole + 1]),
                "".join(joined[2 * hole + 2 :]),
                HoleKind.LINE,
                "python",
                draft=fills[hole] if number and fills[hole] else None,
                strength=0.5 if number and fills[hole] else 1.0,
            )
            fills[hole] = engine.fill(request).text
    return tuple(fills)


def together(
    engine: InfillEngine, pieces: Texts, drafts: Texts | None = None, strength: float = 1.0
) -> Texts:
    kinds = (HoleKind.LINE,) * (len(pieces) - 1)
    request = JointRequest(pieces, kinds, drafts, strength, "python")
    return engine.fill_together(request).texts


def then_together(engine: InfillEngine, pieces: Texts) -> Texts:
    """One after another, then all as drafts on one canvas, if that holds what they became."""
    drafts = in_turn(engine, pieces, rounds=1)
    try:
        return together(engine, pieces, drafts, 0.5)
    except HolesTooFarApart:
        return drafts


METHODS: dict[str, Callable[[InfillEngine, Texts], Texts]] = {
    "in turn": lambda engine, pieces: in_turn(engine, pieces, rounds=1),
    "in turn, twice": lambda engine, pieces: in_turn(engine, pieces, rounds=2),
    "together": together,
    "in turn, then together": then_together,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--count", type=int, default=60, help="groups of holes")
    parser.add_argument("--holes", type=int, default=2, help="in a group")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engine = load_engine(arguments.model)
    exact, similar, seconds = ({name: [0.0] for name in METHODS} for _ in range(3))
    num_groups = num_far = 0
    for pieces, missing in groups(arguments.folder, arguments.holes, arguments.seed):
        try:
            together(engine, pieces)
        except HolesTooFarApart:
            num_far += 1
            continue
        for name, method in METHODS.items():
            started = time.perf_counter()
            fills = method(engine, pieces)
            seconds[name].append(time.perf_counter() - started)
            for fill, truth in zip(fills, missing, strict=True):
                exact[name].append(float(fill.strip() == truth.strip()))
                similar[name].append(Indel.normalized_similarity(fill.strip(), truth.strip()))
        num_groups += 1
        if num_groups == arguments.count:
            break
    num_holes = num_groups * arguments.holes
    print(f"{num_groups} groups of {arguments.holes} holes; {num_far} more were too far apart")
    print("| way | exactly right | similarity | ms a group |\n|---|---|---|---|")
    for name in METHODS:
        print(
            f"| {name} | {100 * sum(exact[name]) / num_holes:.1f} % "
            f"| {100 * sum(similar[name]) / num_holes:.1f} % "
            f"| {1000 * sum(seconds[name]) / num_groups:.0f} |"
        )


if __name__ == "__main__":
    main()
