"""The engine's errors, one tree.

DGemmaError
├── ConfigError          a value the user or a config.json gave is out of range
├── CheckpointError      a checkpoint folder cannot be loaded
├── RequestError         a request cannot be served as it stands
│   ├── ContextTooLong   prefix and suffix exceed what the model can read
│   └── HolesTooFarApart several holes and the text between them exceed one canvas
├── EngineUnavailable    no engine can be had here (torch missing, device absent)
│   └── OutOfMemory      the model, or what a fill works with, does not fit
└── Cancelled            the caller withdrew the request

Every message names the value received, the limit, and what to do about it.
"""

from __future__ import annotations


class DGemmaError(Exception):
    """Base of everything the engine raises on purpose."""


class ConfigError(DGemmaError):
    """A configuration value is missing or out of range."""


class CheckpointError(DGemmaError):
    """A checkpoint folder is missing something, damaged, or of another architecture."""


class RequestError(DGemmaError):
    """An infill request cannot be served as it stands."""


class ContextTooLong(RequestError):
    """Prefix and suffix together exceed what the model can read."""


class HolesTooFarApart(RequestError):
    """Several holes, with the text between them, do not fit on one canvas."""


class EngineUnavailable(DGemmaError):
    """No engine can be had on this machine as it is."""


class OutOfMemory(EngineUnavailable):
    """The device has too little memory; the message says what would fit."""


class Cancelled(DGemmaError):
    """The caller withdrew the request; nothing was lost but its result."""
