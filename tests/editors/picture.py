"""A picture of a terminal's screen, for the documentation and for whoever reads a failed test."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from .terminal import Terminal

_FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
_SIZE = 18  # pixels
_MARGIN = 12
_FOREGROUND, _BACKGROUND = "#d4d4d4", "#1e1e1e"
# What the terminal's own names mean; others are written as RRGGBB.
_NAMED = {
    "default": "",
    "black": "000000",
    "red": "cd3131",
    "green": "0dbc79",
    "brown": "e5e510",
    "blue": "2472c8",
    "magenta": "bc3fbc",
    "cyan": "11a8cd",
    "white": "e5e5e5",
}


def draw(terminal: Terminal, path: Path) -> None:
    """Write the screen as a PNG."""
    plain, slanted = (
        ImageFont.truetype(str(_FONTS / name), _SIZE)
        for name in ("DejaVuSansMono.ttf", "DejaVuSansMono-Oblique.ttf")
    )
    width, height = round(plain.getlength("M")), _SIZE + 5
    with terminal.lock:
        screen = terminal.screen
        columns, lines = screen.columns, screen.lines
        cells = [[screen.buffer[row][column] for column in range(columns)] for row in range(lines)]
        cursor = (screen.cursor.y, screen.cursor.x)
    size = (columns * width + 2 * _MARGIN, lines * height + 2 * _MARGIN)
    image = Image.new("RGB", size, _BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            x, y = _MARGIN + column * width, _MARGIN + row * height
            colours = _colour(cell.fg, _FOREGROUND), _colour(cell.bg, _BACKGROUND)
            ink, paper = reversed(colours) if cell.reverse else colours
            canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=paper)
            if (row, column) == cursor:
                canvas.rectangle((x, y, x + 1, y + height - 1), fill=_FOREGROUND)
            canvas.text((x, y + 1), cell.data, fill=ink, font=slanted if cell.italics else plain)
    image.save(path, optimize=True)


def _colour(name: str, default: str) -> str:
    code = _NAMED.get(name, name)
    return f"#{code}" if code else default
