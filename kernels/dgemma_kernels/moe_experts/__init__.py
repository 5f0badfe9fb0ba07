"""Mixture of gated experts."""

from .reference import moe_experts_reference as moe_experts

__all__ = ["moe_experts"]
