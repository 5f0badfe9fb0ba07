"""`python -m dgemma_lsp` and the `dgemma-lsp` command."""

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
