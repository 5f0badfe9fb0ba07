"""`dgemma-lsp eval`: how good a model's fills are, beside plainer ways to fill the same holes.

    holes.py      holes cut out of files that the model never saw
    humaneval.py  the HumanEval-Infilling benchmark, its tests run in `sandbox.py`
    methods.py    the ways to fill: diffusion, left to right, copying
    metrics.py    what a fill is worth, and what chance does to a mean
    coverage.py   how many suggestions are right, by how sure the model has to be
    report.py     tables, pictures, JSON
    commands.py   the command line

Knows the engine by the InfillEngine protocol. Nothing here is needed to serve an editor.
"""
