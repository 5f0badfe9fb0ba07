"""What was measured, as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HOLE_COLUMNS = (
    ("exact_match", "exact match % (95 %)"),
    ("edit_similarity", "edit similarity %"),
    ("first_token", "first token %"),
    ("exact_length", "exact length %"),
    ("length_within_1", "length ±1 %"),
    ("parses", "parses %"),
    ("repeats", "repeats %"),
    ("mean_passes", "passes"),
    ("median_ms", "ms, median"),
    ("p95_ms", "ms, p95"),
)
_HUMANEVAL_COLUMNS = (
    ("pass_at_1", "pass@1 % (95 %)"),
    ("exact_match", "exact match %"),
    ("mean_passes", "passes"),
)


def hole_table(buckets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Bucket -> method -> `metrics.summarise`."""
    return _table("holes", buckets, _HOLE_COLUMNS)


def humaneval_table(files: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """File -> method -> `humaneval.summarise`."""
    return _table("file", files, _HUMANEVAL_COLUMNS)


def coverage_table(found: Mapping[str, Any]) -> str:
    """What the chosen threshold does, by bucket, on the holes it was not fitted on."""
    lines = [
        "| holes | shown % | right % (95 %) | filled whole % | characters |",
        "|---|---|---|---|---|",
    ]
    rows = {"all": found["judged"], **found["by_bucket"]} if found["judged"] else {}
    for name, item in rows.items():
        right = "-"
        if item["precision"] is not None:
            low, high = item["precision_interval"]
            right = f"{item['precision']} ({low:.0f}-{high:.0f})"
        lines.append(
            f"| {name} | {item['coverage']} | {right} | {item['whole']} "
            f"| {item['mean_characters']} |"
        )
    return "\n".join(lines) + "\n"


def example_table(examples: list[Mapping[str, str]]) -> str:
    """Fills as they came: `║` the cursor, `¶` a line break."""
    lines = ["| holes | before | fill | was | after |", "|---|---|---|---|---|"]
    for example in examples:
        cells = [
            _code(example["before"].rpartition("\n")[2][-50:] + "║"),
            _code(example["fill"]),
            _code(example["was"]),
            _code(example["after"].partition("\n")[0][:40]),
        ]
        lines.append(f"| {example['bucket']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _table(
    first: str,
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    columns: tuple[tuple[str, str], ...],
) -> str:
    titles = " | ".join(title for _, title in columns)
    lines = [f"| {first} | method | {titles} |", "|---" * (len(columns) + 2) + "|"]
    for group, methods in groups.items():
        for method, row in methods.items():
            cells = " | ".join(_cell(row, name) for name, _ in columns)
            lines.append(f"| {group} ({row['holes']}) | {method} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = f"{row[name]}"
    if (interval := row.get(f"{name}_interval")) is not None:
        value += f" ({interval[0]:.0f}-{interval[1]:.0f})"
    return value


def _code(text: str) -> str:
    if not text.strip():
        return ""
    fence = "``" if "`" in text else "`"
    shown = text.replace("\n", "¶").replace("|", "\\|")
    return f"{fence} {shown} {fence}" if "`" in text else f"{fence}{shown}{fence}"
