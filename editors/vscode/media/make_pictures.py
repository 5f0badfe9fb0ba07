"""Makes the pictures of the README and the walkthrough from what the tests photographed.

    DGEMMA_SHOTS=/tmp/shots pytest -m e2e tests/editors/test_vscode.py
    python editors/vscode/media/make_pictures.py /tmp/shots

Needs pillow, which the extra `train` brings with matplotlib.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent

# (left, top, right, bottom) of a window of 1000 x 640
EDITOR = (256, 36, 996, 326)
EDITOR_AND_STATUS = (256, 36, 996, 636)
SLOWER = 10  # a denoising pass takes some 30 ms, too fast to be seen
LAST_MS = 3000


def main(shots: Path) -> None:
    for name, shot, box in (
        ("ghost", "real-ghost", EDITOR),
        ("action", "real-action", EDITOR),
        ("canvas", "canvas-1", EDITOR),
        ("status", "installed", (456, 608, 996, 640)),
    ):
        Image.open(shots / f"{shot}.png").convert("RGB").crop(box).save(
            HERE / f"{name}.png", optimize=True
        )
    denoising = sorted((shots / "denoising").glob("*.png"), key=lambda file: int(file.stem))
    save_gif(denoising, HERE / "denoising.gif")


def save_gif(files: list[Path], out: Path) -> None:
    """The frames that differ, each as long as it was seen, slowed down."""
    frames: list[Image.Image] = []
    starts: list[int] = []
    for file in files:
        frame = Image.open(file).convert("RGB").crop(EDITOR)
        if not frames or frame.tobytes() != frames[-1].tobytes():
            frames.append(frame)
            starts.append(int(file.stem))
    durations = [(end - start) * SLOWER for start, end in pairwise(starts)]
    palette = [frame.quantize(64) for frame in frames]
    palette[0].save(
        out,
        save_all=True,
        append_images=palette[1:],
        duration=[*durations, LAST_MS],
        loop=0,
        optimize=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
