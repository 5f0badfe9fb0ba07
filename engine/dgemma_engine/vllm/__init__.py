"""An engine on a team's server, spoken to over HTTP.

Knows no torch and no weights: of a checkpoint it reads the tokenizer and `config.json`. `engine.py`
is where to begin; `probe.py` finds out what the server can do, `inpainting.py` and `prompted.py`
are the ways to ask it for a hole, `client.py` is the HTTP.
"""

from __future__ import annotations

from .client import Patience
from .engine import LEVELS, VllmEngine
from .failures import NotServed, Refused, ServerUnreachable

__all__ = ["LEVELS", "NotServed", "Patience", "Refused", "ServerUnreachable", "VllmEngine"]
