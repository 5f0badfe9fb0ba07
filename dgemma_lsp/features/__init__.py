"""One LSP feature a file: it looks at what the client offered, registers itself, and stays thin."""
