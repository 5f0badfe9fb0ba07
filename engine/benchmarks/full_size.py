"""The 26B with random weights on this device: how long its passes, fills and prefills take.

    python engine/benchmarks/full_size.py --format fp8        # bf16, fp8, int8, int4 or nvfp4
    python engine/benchmarks/full_size.py --tiny              # seconds, on a CPU: that it runs

One format a run, within 10 minutes. The weights are drawn and quantised on the device, layer by
layer, so nothing is downloaded and 4 bits fit into 24 GB. Beside it runs transformers' own class
with the same weights, where it is installed and they fit. Prints a table, appends a CSV, and
asserts nothing about time. Random weights choose their experts evenly, which is the worst case.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgemma_engine.checkpoint import form_of, resolve_device
from dgemma_engine.config import ModelConfig
from dgemma_engine.errors import DGemmaError, OutOfMemory
from dgemma_engine.known import PUBLISHED_CONFIG
from dgemma_engine.layers import hold
from dgemma_engine.machine import free_memory
from dgemma_engine.memory import HELD_AS, does_not_fit, memory_plan, num_parameters
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.stored_model import our_name_to_stored
from dgemma_engine.stored_weights import Stack, in_format
from dgemma_engine.timing import Bench, Plan, Row, pass_bytes, timed
from dgemma_kernels.weights import QuantizedWeight

RESULTS = Path(__file__).parent / "results" / "full_size.csv"
# The same shape, small: every kind of layer, expert and head size.
TINY_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "sliding_window": 32,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 512,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}
TINY_PLAN = Plan((32, 64), (40, 100), protocol_prefix=100, repeats=1, seconds=60.0)
# The smallest vision tower that transformers builds; it is not run.
_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "patch_size": 4,
    "position_embedding_size": 64,
    "pooling_kernel_size": 2,
    "default_output_length": 4,
    "use_clipped_linears": False,
    "standardize": True,
}
# Beside the weights: a cache, logits, and what transformers' own passes allocate.
_SPARE_BYTES = 8_000_000_000


def build_config(*, is_tiny: bool) -> dict[str, Any]:
    """A config.json of the published dimensions, or of the same shape in small."""
    if not is_tiny:
        return PUBLISHED_CONFIG
    text = {**PUBLISHED_CONFIG["text_config"], **TINY_TEXT}
    return {**PUBLISHED_CONFIG, "canvas_length": 64, "text_config": text}


@torch.no_grad()
def build_model(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
    seed: int = 0,
) -> DiffusionGemma:
    """A model of random weights, drawn on the device and quantised one stack at a time.

    Matrices have a variance of 1 / columns, so that activations stay of the size of 1.

    Raises:
        OutOfMemory: it does not fit.
    """
    plan = memory_plan(config, quantization, max(Plan().prefixes))
    free = free_memory(device)
    if free is not None and plan.total_bytes > free.free_bytes:
        raise OutOfMemory(does_not_fit(config, plan, free.free_bytes, str(device)))
    forms, prepared = HELD_AS.get(quantization or ""), device.type == "cuda"
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        model = DiffusionGemma(config)
    weights: dict[str, Tensor] = {}
    for name, meta in model.state_dict().items():
        tensor = torch.empty(meta.shape, dtype=dtype, device=device)
        if tensor.ndim == 1:
            weights[name] = tensor.fill_(0.3 if name.endswith("q_norm.weight") else 1.0)
            continue
        spread = 0.02 if name == "embed_tokens.weight" else tensor.shape[-1] ** -0.5
        tensor.normal_(0.0, spread, generator=generator)
        form = form_of(name, forms)
        if form is None:
            weights[name] = tensor
        elif tensor.ndim == 2:
            held = in_format(tensor, form, prepared=prepared)
            assert isinstance(held, QuantizedWeight)
            hold(model, name, held)
        else:
            stack = Stack(tuple(tensor.shape))
            for expert, matrix in enumerate(tensor):
                stack.put(expert, None, in_format(matrix, form, prepared=prepared))
            whole = stack.whole()
            assert isinstance(whole, QuantizedWeight)
            hold(model, name, whole)
    model.load_state_dict(weights, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def build_transformers(config: dict[str, Any], model: DiffusionGemma) -> Any:
    """transformers' own class with the same weights; None, with the reason told, if it cannot be.

    What is not quantised is shared with `model` and takes no memory twice.
    """
    try:
        from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
    except ImportError as error:
        print(f"transformers is not timed: {error}")
        return None
    free = free_memory(model.device)
    needed = _SPARE_BYTES + 2 * model.num_parameters * (model.quantization is not None)
    if model.device.type == "cuda" and free is not None and free.free_bytes < needed:
        print(
            f"transformers is not timed: its weights need {needed / 1e9:.0f} GB, "
            f"{free.free_bytes / 1e9:.0f} GB are free"
        )
        return None
    ids = {"image_token_id": 5, "boi_token_id": 6, "eoi_token_id": 7}
    text = {**config["text_config"], "pad_token_id": 0}
    with torch.device("meta"):
        other = DiffusionGemmaForBlockDiffusion(
            DiffusionGemmaConfig(
                text_config=text,
                vision_config=_VISION,
                canvas_length=config["canvas_length"],
                **ids,
            )
        ).eval()
    other.load_state_dict(dict(_stored_weights(model)), strict=False, assign=True)
    other.tie_weights()
    for module in other.modules():
        _fill_buffers(module, model.device, model.dtype)
    if model.device.type == "cuda":
        other.set_experts_implementation("grouped_mm")
    return other.requires_grad_(False)


def _stored_weights(model: DiffusionGemma) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        yield our_name_to_stored(name), tensor
    for owner, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, QuantizedWeight):
                yield our_name_to_stored(f"{owner}.{attribute}"), value.dequantize(model.dtype)


def _fill_buffers(module: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Give a module that was made on the meta device what no checkpoint holds."""
    if hasattr(module, "scalar_embed_scale"):
        module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
    elif type(module).__name__.endswith("RotaryEmbedding"):
        fresh = type(module)(module.config, device=device)
        for name, buffer in fresh.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_meta:  # the vision tower's
            zeros = torch.zeros(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))


@torch.no_grad()
def transformers_rows(other: Any, bench: Bench, repeats: int) -> Iterator[Row]:
    """A pass of transformers at the protocol's prefix.

    Prints how far its logits are from ours first: it is the same model, or the time means nothing.
    """
    model = bench.model
    prefix = bench.plan.protocol_prefix
    prompt = bench.tokens(prefix)
    ours = model.prefill(prompt)
    for canvas in bench.plan.canvases:
        if canvas > model.config.canvas_length:
            continue
        token_ids = bench.tokens(canvas)
        first = other(input_ids=prompt, decoder_input_ids=token_ids)
        expected = model.denoise_logits(token_ids, ours)
        off = float((first.logits.float() - expected).norm() / expected.norm())
        print(f"transformers, canvas {canvas}: logits differ by {off:.1e} of their norm")
        fed_back = (first.logits / 0.8).to(model.dtype)
        cache = first.past_key_values

        def run(
            cache: Any = cache, token_ids: Tensor = token_ids, fed_back: Tensor = fed_back
        ) -> None:
            other(
                past_key_values=cache,
                decoder_input_ids=token_ids,
                self_conditioning_logits=fed_back,
            )

        times = timed(model.device, run, repeats)
        floor = pass_bytes(model, canvas, prefix)
        yield bench.row("pass, transformers", times, floor, canvas=canvas, prefix=prefix, passes=1)


def show(rows: list[Row]) -> None:
    """A table in Markdown."""
    print("\n| what | canvas | prefix | passes | ms (p10 to p90) | floor ms | x floor | tokens/s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        rate = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else ""
        print(
            f"| {row.what} | {row.canvas or ''} | {row.prefix} | {row.passes or ''} | {row.ms:.2f} "
            f"({row.ms_low:.2f} to {row.ms_high:.2f}) | {row.floor_ms:.2f} | "
            f"{row.ms / row.floor_ms:.2f} | {rate} |"
        )


def append(path: Path, rows: list[Row], where: dict[str, object]) -> None:
    """Add the rows to a CSV, with where they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        names = [*where, *(item.name for item in dataclasses.fields(Row))]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows({**where, **dataclasses.asdict(row)} for row in rows)


def describe(model: DiffusionGemma, bench: Bench, seed: int) -> dict[str, object]:
    """Where and with what a table was measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    is_gpu = model.device.type == "cuda"
    return {
        "commit": commit or "unknown",
        "device": torch.cuda.get_device_name(model.device) if is_gpu else platform.machine(),
        "torch": torch.__version__,
        "parameters": num_parameters(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": model.quantization or "plain",
        "copy_gb_per_second": round(bench.bandwidth / 1e9, 1),
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--format", default="bf16", choices=("bf16", *HELD_AS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same shape")
    parser.add_argument("--seconds", type=float, default=360.0, help="for timing ours")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument(
        "--csv", type=Path, help=f"append the rows to this file (full size: {RESULTS.name})"
    )
    options = parser.parse_args()
    try:
        run(options)
    except DGemmaError as error:
        sys.exit(f"full_size.py: {error}")


def run(options: argparse.Namespace) -> None:
    """Build, time, print, append."""
    device = resolve_device(options.device)
    config = build_config(is_tiny=options.tiny)
    quantization = None if options.format == "bf16" else options.format
    dtype = torch.float32 if options.tiny else torch.bfloat16
    started = time.monotonic()
    parsed = ModelConfig.from_json(config)
    model = build_model(parsed, device, dtype, quantization, options.seed)
    plan = Plan(repeats=options.repeats, seconds=options.seconds)
    bench = Bench(model, TINY_PLAN if options.tiny else plan, options.seed, on_device=True)
    where = describe(model, bench, options.seed)
    print(f"built in {time.monotonic() - started:.1f} s: {where}")
    rows = []
    for row in bench.rows():
        rows.append(row)
        print(
            f"  {row.what}, canvas {row.canvas}, prefix {row.prefix}: {row.ms:.2f} ms", flush=True
        )
    if not options.no_transformers:
        other = build_transformers(config, model)
        if other is not None:
            try:
                for row in transformers_rows(other, bench, max(1, bench.plan.repeats // 5)):
                    rows.append(row)
            except torch.OutOfMemoryError:
                print("the rest of transformers is not timed: out of memory")
    show(rows)
    for what in bench.left_out:
        print(f"\nleft out: {what}")
    if model.device.type == "cuda":
        print(f"\nmemory at most: {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")
    path = options.csv or (None if options.tiny else RESULTS)
    if path is not None:
        append(path, rows, where)


if __name__ == "__main__":
    main()
