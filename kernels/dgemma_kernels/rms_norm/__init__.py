"""Root-mean-square norm."""

from .reference import rms_norm_reference as rms_norm

__all__ = ["rms_norm"]
