"""Pack a run into a checkpoint folder that the engine loads: weights, tokenizer, configs, card.

    python -m training.pack --run RUN --corpus DIR --out FOLDER [--scores scores.md]

Without scores the card says that there are none: pack, fit what it recalls (`training.recall`),
evaluate the folder by `dgemma-lsp eval`, which also says the confidence threshold, and pack again.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dgemma_engine import HoleKind
from dgemma_engine.quantization import QUANT_METHOD, save_int8
from dgemma_engine.special_tokens import EOS, PAD, SPECIAL_TOKENS
from dgemma_engine.stored_model import our_name_to_stored

from .corpus import licence_table
from .rows import HOLE_LENGTHS
from .train import Progress

_MAX_SHARD_BYTES = 15 * 2**20  # files of at most 16 MiB are committed

GENERATION_CONFIG: dict[str, Any] = {
    "max_denoising_steps": 8,
    "t_max": 0.8,
    "t_min": 0.4,
    "confidence_threshold": 0.005,
    "stability_threshold": 1,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "eos_token_id": SPECIAL_TOKENS.index(EOS),
    "pad_token_id": SPECIAL_TOKENS.index(PAD),
}

# What a small model needs beyond the published sampler, and how its canvases were laid out.
INFILL_CONFIG: dict[str, Any] = {
    "sampler": {"candidates": "argmax", "min_accept": True, "stable_text_passes": 2},
    "layout": {
        "canvas_lengths": sorted(HOLE_LENGTHS),
        "hole_lengths": sorted({size for sizes in HOLE_LENGTHS.values() for size in sizes}),
        "line_tokens": 32,
        "block_tokens": 64,
        "prefix_tokens": 320,
        "suffix_tokens": 64,
        # Lengths of a line's fill; more of them take longer and find little more.
        "line_candidates": [1, 2, 3, 4, 6, 8, 12, 16],
        "probe_passes": 3,
        "refined": 3,
    },
}


def write_weights(state: dict[str, Any], weights: str, folder: Path) -> int:
    """Write the weights in 8 bits under the published names; returns the number of parameters.

    Args:
        state: a run's checkpoint.
        weights: "ema", the running mean, or "raw", the last step's.
        folder: where `model.safetensors` or its shards go; older ones are removed.
    """
    tensors = dict(state["model"])
    num_parameters = sum(tensors[name].numel() for name in state["ema"])
    if weights == "ema":
        tensors.update(state["ema"])
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    stored = {our_name_to_stored(name): tensor for name, tensor in tensors.items()}
    save_int8(stored, folder, _MAX_SHARD_BYTES)
    return num_parameters


def pack(
    run: Path,
    corpus: Path,
    out: Path,
    weights: str = "ema",
    scores: Path | None = None,
    infill_config: Mapping[str, Any] = INFILL_CONFIG,
    hardware: str = "two CPU cores",
) -> None:
    """Write the checkpoint folder. Lines of `notes.txt` in the run's folder go into the card."""
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    if (run / "notes.txt").exists():
        state["notes"] = (run / "notes.txt").read_text(encoding="utf-8").splitlines()
    out.mkdir(parents=True, exist_ok=True)
    num_parameters = write_weights(state, weights, out)
    config = {**state["config"], "quantization_config": {"quant_method": QUANT_METHOD}}
    _write_json(config, out / "config.json")
    _write_json(GENERATION_CONFIG, out / "generation_config.json")
    prefix_tokens = {"prefix_tokens": _longest_row(state["options"]) * 5 // 8}
    layout = infill_config["layout"] | prefix_tokens
    statistics = json.loads((corpus / "statistics.json").read_text(encoding="utf-8"))
    languages = sorted(_sizes(statistics))
    made = {**infill_config, "layout": layout, "languages": languages, **_recall(out)}
    _write_json(made, out / "infill_config.json")
    shutil.copyfile(corpus / "tokenizer.json", out / "tokenizer.json")
    shutil.copyfile(run / "losses.csv", out / "losses.csv")
    if (run / "losses.png").exists():
        shutil.copyfile(run / "losses.png", out / "losses.png")
    table = scores.read_text(encoding="utf-8") if scores is not None else None
    card = build_card(out.name, num_parameters, state, weights, statistics, table, hardware)
    (out / "README.md").write_text(card, encoding="utf-8")


def build_card(
    name: str,
    num_parameters: int,
    state: dict[str, Any],
    weights: str,
    statistics: dict[str, Any],
    scores: str | None,
    hardware: str,
) -> str:
    """The model card: what it is, what it saw, what it reached, what it is not."""
    options, progress = state["options"], Progress(**state["progress"])
    held_out, totals = progress.held_out[-1], progress.totals()
    bytes_by_split = statistics["bytes"]
    parts = [
        _CARD_HEAD.format(
            name=name,
            parameters=f"{num_parameters / 1e6:.2f} M",
            purpose=_PURPOSES.get(options["size"], _PURPOSES["other"]),
            hardware=hardware,
            minutes=f"{totals['minutes']:.0f}",
            steps=f"{totals['step']:,}",
            document_tokens=f"{totals['document_tokens'] / 1e6:.1f} M",
            canvas_tokens=f"{totals['canvas_tokens'] / 1e6:.1f} M",
            train_megabytes=f"{bytes_by_split['train'] / 1e6:.1f}",
            languages=_languages(statistics),
            held_out_megabytes=f"{bytes_by_split['held_out'] / 1e6:.1f}",
            noise=options["noise"],
            weights={"ema": "their exponential mean", "raw": "as they stood at the end"}[weights],
        ),
        "| left to right | canvas, all slots | text, pure noise | first slot, pure noise "
        "| text, partly noise | clean | padding |\n|---|---|---|---|---|---|---|\n| "
        + " | ".join(
            f"{held_out[column]:.2f}"
            for column in ("causal", "canvas", "t1", "first", "noisy", "clean", "pad")
        )
        + " |\n",
        "## Scores\n",
    ]
    parts += ["Not evaluated.\n"] if scores is None else [_SCORES_HEAD, scores]
    notes = state.get("notes", [])
    if notes:
        parts.append("## About this run\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    longest = _longest_row(options)
    limits = _CARD_LIMITS.format(
        languages=_languages(statistics), longest=longest, prefix=longest * 5 // 8
    )
    parts += [limits, licence_table(statistics)]
    return "\n".join(parts)


def _recall(folder: Path) -> dict[str, Any]:
    """What `training.recall` wrote into a folder that is packed again."""
    path = folder / "infill_config.json"
    if not path.exists():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    return {"recall": config["recall"]} if "recall" in config else {}


def _longest_row(options: Mapping[str, Any]) -> int:
    """Document tokens of the longest rows of a run."""
    return int(options["document_length"] * (2 if options.get("long_share", 0.25) > 0 else 1))


def _sizes(statistics: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each language of a corpus; older ones are Python and do not say."""
    return statistics.get("languages") or {"python": 1}


def _languages(statistics: Mapping[str, Any]) -> str:
    """By size, with their shares: "python 81 %, go 6 %"."""
    sizes = _sizes(statistics)
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    if len(ordered) == 1:
        return str(ordered[0][0])
    return ", ".join(f"{name} {100 * size / sum(sizes.values()):.0f} %" for name, size in ordered)


_PURPOSES = {
    "4m": """the smallest that exercises the whole path, made to be tests' fixture and a first
default. Its fills are seldom right; the scores below say how seldom.""",
    "16m": """the 4 M model, grown to twice its width. The scores below say how often it is
right.""",
    "other": """small enough for a laptop's CPU. The scores below say how often it is right.""",
}


_CARD_HEAD = """# {name}

A {parameters}-parameter text-diffusion model of the DiffusionGemma architecture that fills holes
in code: {purpose}

Trained from scratch by `engine/training` on {hardware} in {minutes} minutes: {steps} steps,
{document_tokens} document tokens and {canvas_tokens} canvas tokens, of {train_megabytes} MB of
source ({languages}); {held_out_megabytes} MB in whole packages were held out. First left to right
only, then documents and canvases together; {noise} noise. The weights are {weights}, stored in 8
bits. `losses.csv` and `losses.png` hold the curves; `engine/training/README.md` the commands.

## Losses on held-out packages

Nats per token, at the end of training, half of the canvases with self-conditioning.
"""

_SCORES_HEAD = """Holes in held-out packages, none on lines that training files share, measured by
`dgemma-lsp eval holes`. A fill is right when it equals the text that was there, white space at its
ends aside. `diffusion` does not know the length; `length known` is told it; `left to right` is
greedy decoding of the same weights with the suffix in the prompt, `no suffix` the same without it
(for blocks, it is told the length); `copy` is no model: what followed the last place in the file
that ended as the prefix does; `auto` is what the product offers. All but `copy` and `nothing
recalled` recall how code like this went on in the file and in the others of its package, as in an
editor that has the package's folder open.
"""

_CARD_LIMITS = """## Limits

Trained on {languages} only; other languages have tags in the vocabulary and nothing behind them.
Rows had up to {longest} tokens: it reads at most {prefix} before the hole and 64 behind it. It
knows no API by heart, and puts words that the context does not hold together from fragments. Most
of its fills are wrong: while the user types, the server shows only the starts that it is sure of.

## Training data and licences

Comments and strings were kept. The corpus is rebuilt from `engine/training/manifest.json` by
`python -m training.corpus`; it is not part of this package.
"""


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="training.pack", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder written by train")
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by corpus")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    parser.add_argument("--scores", type=Path, help="written by `dgemma-lsp eval --markdown`")
    parser.add_argument("--confidence-threshold", type=float, default=0.0, help="that it found")
    parser.add_argument(
        "--left-to-right",
        nargs="*",
        default=[],
        choices=[kind.value for kind in HoleKind],
        help="kinds of holes that the encoder fills better",
    )
    parser.add_argument("--hardware", default="two CPU cores", help="that it was trained on")
    options = parser.parse_args(arguments)
    infill_config = copy.deepcopy(INFILL_CONFIG)
    infill_config["confidence_threshold"] = options.confidence_threshold
    infill_config["layout"]["left_to_right"] = options.left_to_right
    pack(
        options.run,
        options.corpus,
        options.out,
        options.weights,
        options.scores,
        infill_config,
        options.hardware,
    )


if __name__ == "__main__":
    main()
