"""Draws icon.png: a line of code whose middle is still noise, between two brackets.

    python editors/vscode/media/draw_icon.py

Needs matplotlib, which the extra `train` brings.
"""

from __future__ import annotations

import random
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

SIZE = 128  # pixels, as the marketplace asks for


def main() -> None:
    figure = Figure(figsize=(1, 1), dpi=SIZE)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 128)
    axes.set_ylim(0, 128)
    axes.axis("off")
    axes.add_patch(FancyBboxPatch((14, 14), 100, 100, "round,pad=10", color="#1d2440", lw=0))
    for x, direction in ((22, 1), (106, -1)):
        axes.plot(
            [x + 14 * direction, x, x, x + 14 * direction],
            [98, 98, 30, 30],
            color="#f2f4ff",
            lw=3.2,
            solid_joinstyle="miter",
        )
    noise = random.Random(7)
    for row, y in enumerate(range(40, 92, 12)):
        for x in range(34, 94, 12):
            settled = noise.random() < 1 - abs(row - 2) / 3
            color = "#ffb454" if settled else "#5d6aa8"
            alpha = 1.0 if settled else noise.uniform(0.25, 0.8)
            axes.add_patch(Rectangle((x, y), 9, 9, color=color, alpha=alpha, lw=0))
    figure.savefig(Path(__file__).with_name("icon.png"), transparent=True)


if __name__ == "__main__":
    main()
