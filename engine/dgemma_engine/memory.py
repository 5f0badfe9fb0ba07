"""How much memory a model takes, from its dimensions alone: weights, cache, what a pass works with.

Pure arithmetic on a ModelConfig; needs no torch and looks at no machine (that is `machine.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .config import ModelConfig
from .errors import ConfigError

# How the matrices are held for each name that a user may give, experts and dense ones apart: four
# bits are for the experts, which are nine tenths of the model and forgive it.
HELD_AS: dict[str, tuple[str, str]] = {
    "fp8": ("fp8", "fp8"),
    "int8": ("int8", "int8"),
    "int4": ("int4", "int8"),
    "nvfp4": ("nvfp4", "fp8"),
}
QUANTIZATIONS = tuple(HELD_AS)

# Tokens that a sliding layer's cache keeps beyond its window: so much can be deleted and retyped
# without a new encoding of the whole prefix. 0.2 MB a token in the 26B.
SLACK_TOKENS = 1024
# Tokens encoded at once. More gains nothing: 1024 tokens keep a GPU busy for longer than it takes
# to read the weights.
PREFILL_TOKENS = 1024
# Scores of one head that a prefill may hold: 16 heads in float32 and bfloat16 take 3.2 GB.
_MOST_SCORES = 2**25
_LEAST_PREFILL_TOKENS = 64
# The driver's own memory, its libraries', and what the allocator cannot use.
_OVERHEAD_BYTES = 1_000_000_000


def prefill_tokens(context_tokens: int) -> int:
    """How many tokens to encode at once in a context of so many."""
    return max(_LEAST_PREFILL_TOKENS, min(PREFILL_TOKENS, _MOST_SCORES // context_tokens))


def sliding_capacity(config: ModelConfig) -> int:
    """Tokens that a sliding layer's cache has room for."""
    return config.sliding_window - 1 + SLACK_TOKENS + PREFILL_TOKENS


class Matrices(NamedTuple):
    """So many matrices (rows, columns) of one part of the model."""

    part: str  # "experts", "attention" or "mlp"
    number: int
    rows: int
    columns: int


def quantizable_matrices(config: ModelConfig) -> Iterator[Matrices]:
    """What is held in few bits: the experts, attention's projections, the dense MLPs.

    The embedding, the router, self-conditioning and the norms are not: they decide much with few
    numbers.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    for layer in config.layers:
        heads = config.num_attention_heads * layer.head_dim
        groups = layer.num_key_value_heads * layer.head_dim
        yield Matrices("attention", 1, heads, hidden)
        yield Matrices("attention", 1 if layer.value_from_key else 2, groups, hidden)
        yield Matrices("attention", 1, hidden, heads)
        yield Matrices("mlp", 2, inner, hidden)
        yield Matrices("mlp", 1, hidden, inner)
        yield Matrices("experts", config.num_experts, 2 * config.moe_intermediate_size, hidden)
        yield Matrices("experts", config.num_experts, hidden, config.moe_intermediate_size)


def other_parameters(config: ModelConfig) -> int:
    """How many numbers are in none of these matrices."""
    hidden, experts = config.hidden_size, config.num_experts
    embedding = config.vocab_size * hidden
    self_conditioning = 3 * hidden * config.intermediate_size + hidden
    layers = 0
    for layer in config.layers:
        norms = 7 * hidden + 2 * layer.head_dim
        router = experts * hidden + hidden + experts
        layers += norms + router + 2  # the two layer scalars
    return embedding + self_conditioning + layers + hidden


def num_parameters(config: ModelConfig) -> int:
    """All numbers of the text model, its layer scalars included."""
    matrices = sum(item.number * item.rows * item.columns for item in quantizable_matrices(config))
    return matrices + other_parameters(config)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model needs to run.

    Attributes:
        quantization: a name of `HELD_AS`, or None for two bytes a number.
        context_tokens: the longest prefix.
        weight_bytes: the parameters.
        cache_bytes: keys and values of one prefix.
        work_bytes: the most that a pass or a piece of a prefill adds, and the driver's overhead.
    """

    quantization: str | None
    context_tokens: int
    weight_bytes: int
    cache_bytes: int
    work_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.work_bytes


def memory_plan(config: ModelConfig, quantization: str | None, context_tokens: int) -> MemoryPlan:
    """What a model of these dimensions needs on a GPU.

    Args:
        config: the model's.
        quantization: a name of `HELD_AS`, or None for bfloat16.
        context_tokens: the longest prefix, >= 1.
    Raises:
        ConfigError: another name.
    """
    return MemoryPlan(
        quantization=quantization,
        context_tokens=context_tokens,
        weight_bytes=weight_bytes(config, quantization),
        cache_bytes=_cache_bytes(config, context_tokens),
        work_bytes=_work_bytes(config, context_tokens),
    )


def weight_bytes(config: ModelConfig, quantization: str | None) -> int:
    """Bytes of the parameters. Raises ConfigError for an unknown name."""
    if quantization is None:
        return held_bytes(config, {})
    check_quantization(quantization)
    for_experts, for_dense = HELD_AS[quantization]
    return held_bytes(config, {"experts": for_experts, "attention": for_dense, "mlp": for_dense})


def held_bytes(config: ModelConfig, forms: Mapping[str, str]) -> int:
    """Bytes of the parameters, each part (of `Matrices`) in a form of its own; bfloat16 if none."""
    matrices = sum(
        item.number * _matrix_bytes(forms.get(item.part), item.rows, item.columns)
        for item in quantizable_matrices(config)
    )
    return matrices + 2 * other_parameters(config)


def check_quantization(quantization: str) -> str:
    """The name itself; ConfigError if there is no such way to hold weights."""
    if quantization not in HELD_AS:
        raise ConfigError(
            f"quantization must be one of {', '.join(HELD_AS)} or none, got {quantization!r}"
        )
    return quantization


def longest_context(config: ModelConfig, weights: int, available: int) -> int:
    """The longest prefix, in tokens, that fits beside so many bytes of weights; 0 for none.

    Found by doubling: half of it at least is told, and never more than the model can read.
    """
    fitting, length = 0, min(1024, config.max_position_embeddings)
    while length <= config.max_position_embeddings:
        needed = _cache_bytes(config, length) + _work_bytes(config, length)
        if weights + needed > available:
            break
        fitting, length = length, length * 2
    return fitting


def what_fits(config: ModelConfig, available: int) -> list[tuple[str | None, int]]:
    """Every way to hold the model that fits into so many bytes, the most exact first.

    Returns:
        the quantization, and the longest context with it, in tokens.
    """
    contexts = [
        (name, longest_context(config, weight_bytes(config, name), available))
        for name in (None, *HELD_AS)
    ]
    return [(name, context) for name, context in contexts if context > 0]


def does_not_fit(config: ModelConfig, plan: MemoryPlan, available: int, where: str) -> str:
    """An error's text: what was needed, what is there, and what would fit instead."""
    held = plan.quantization or "bfloat16"
    need = (
        f"the model in {held} needs {_gb(plan.total_bytes)} for {plan.context_tokens:,} tokens of "
        f"context ({_gb(plan.weight_bytes)} of weights), and {where} has {_gb(available)} free"
    )
    fitting = [
        f"{'--quantization ' + name if name else 'bfloat16'} with {context:,} tokens of context"
        for name, context in what_fits(config, available)
    ]
    if fitting:
        return f"{need}; what would fit: {', or '.join(fitting)}"
    least = min((*HELD_AS, None), key=lambda name: weight_bytes(config, name))
    smallest = memory_plan(config, least, 1024).total_bytes
    return (
        f"{need}; no form of it fits, {least or 'bfloat16'} needs {_gb(smallest)}: "
        "use a smaller model, or another device"
    )


def ran_out(
    config: ModelConfig,
    parameters: int,
    quantization: str | None,
    context_tokens: int,
    available: int,
) -> str:
    """An error's text: a fill with so much context did not fit beside the model; what would.

    Args:
        available: bytes that are free without the fill, 0 if nobody knows.
    """
    held = f" in {quantization}" if quantization else ""
    plan = memory_plan(config, None, context_tokens)
    most = context_tokens * available // (plan.cache_bytes + plan.work_bytes)
    return (
        f"out of memory in a fill with {context_tokens:,} tokens of context, beside a model of "
        f"{parameters / 1e9:.1f} B parameters{held}; about {min(context_tokens // 2, most):,} "
        "tokens would fit: lower prefixChars, suffixChars or contextChars, or load the model with "
        f"--quantization {' or '.join(QUANTIZATIONS)}"
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def _matrix_bytes(form: str | None, rows: int, columns: int) -> int:
    """One matrix with its scales, as `dgemma_kernels.QuantizedWeight` holds it."""
    if form is None:
        return 2 * rows * columns
    if form in ("fp8", "int8"):
        return rows * columns + 4 * rows
    if form == "int4":
        return rows * columns // 2 + 2 * rows * -(-columns // 128)
    return rows * columns // 2 + rows * -(-columns // 16) + 4


def _cache_bytes(config: ModelConfig, context_tokens: int) -> int:
    held = 0
    for layer in config.layers:
        tokens = context_tokens
        if layer.is_sliding:
            tokens = min(tokens, sliding_capacity(config))
        held += tokens * layer.num_key_value_heads * layer.head_dim * 2 * 2  # keys and values
    return held


def _work_bytes(config: ModelConfig, context_tokens: int) -> int:
    # Of a canvas: logits and what is made of them in float32, and those that are fed back.
    canvas = config.canvas_length * config.vocab_size * (3 * 4 + 2)
    # Of a piece of a prefill: an attention's scores, twice; keys and values, which torch repeats
    # for every query head; the rows of every expert that a token goes to.
    tokens = min(prefill_tokens(context_tokens), context_tokens)
    scores = config.num_attention_heads * tokens * context_tokens * (4 + 2)
    rows = tokens * config.top_k_experts * (config.hidden_size + 2 * config.moe_intermediate_size)
    head_dim = max(layer.head_dim for layer in config.layers)
    repeated = context_tokens * config.num_attention_heads * head_dim * 2 * 2
    return max(canvas, scores + repeated + rows * 4) + _OVERHEAD_BYTES
