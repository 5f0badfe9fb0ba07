"""The model's operations: tensors in, tensors out.

Knows no model, no config, no text. Each op is a folder whose `reference.py` is the plain PyTorch
twin that defines what is right; faster forms are compared with it. Importing this imports torch.
"""

from .attention import attention
from .canvas_attention import canvas_attention
from .entropy_accept import entropy_accept
from .gated_mlp import gated_mlp
from .linear import linear
from .moe_experts import moe_experts, route
from .qk_norm_rope import qk_norm_rope
from .residual_norm import residual_norm
from .rms_norm import rms_norm
from .rope import rope
from .soft_embedding import soft_embedding, truncated_soft_embedding
from .vocab_head import TokenRules, vocab_head

__all__ = [
    "TokenRules",
    "attention",
    "canvas_attention",
    "entropy_accept",
    "gated_mlp",
    "linear",
    "moe_experts",
    "qk_norm_rope",
    "residual_norm",
    "rms_norm",
    "rope",
    "route",
    "soft_embedding",
    "truncated_soft_embedding",
    "vocab_head",
]
