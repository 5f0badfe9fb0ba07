"""Rotary position embedding."""

from .reference import rope_reference as rope

__all__ = ["rope"]
