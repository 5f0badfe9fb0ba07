"""Gated feed-forward network."""

from .reference import gated_mlp_reference as gated_mlp

__all__ = ["gated_mlp"]
