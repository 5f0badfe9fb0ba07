"""The model's operations: tensors in, tensors out.

Knows no model, no config, no text. Each op is a folder whose `reference.py` is the plain PyTorch
twin that defines what is right; faster forms are compared with it. Importing this imports torch.
"""

from .attention import attention
from .gated_mlp import gated_mlp
from .linear import linear
from .moe_experts import moe_experts, route
from .rms_norm import rms_norm
from .rope import rope

__all__ = ["attention", "gated_mlp", "linear", "moe_experts", "rms_norm", "rope", "route"]
