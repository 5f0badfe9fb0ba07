"""The wheel holds what an installed user needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_carries_packages_checkpoint_and_demo(tmp_path: Path) -> None:
    """Three packages, the small checkpoint, the demo's file; no tests, no training."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            tmp_path,
            ROOT,
        ],
        check=True,
        timeout=170,
    )
    (wheel,) = tmp_path.glob("dgemma_lsp-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top_level == {"dgemma_lsp", "dgemma_engine", "dgemma_kernels"}
    checkpoint = "dgemma_engine/checkpoints/fill-4m/"
    assert {
        f"{checkpoint}config.json",
        f"{checkpoint}model.safetensors",
        f"{checkpoint}tokenizer.json",
        "dgemma_lsp/demo/inventory.py.txt",
        "dgemma_lsp/py.typed",
    } <= set(names)
