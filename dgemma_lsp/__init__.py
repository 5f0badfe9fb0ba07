"""The language server: holes from syntax, context, LSP in and out.

Knows the engine only by the `InfillEngine` protocol. Importing this package does not import torch.
"""

__version__ = "0.1.0"
