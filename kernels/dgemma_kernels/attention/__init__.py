"""Grouped-query attention, for the causal encoder and the bidirectional canvas alike."""

from .reference import attention_reference as attention

__all__ = ["attention"]
