"""For all tests: one thread a process.

The models here are tiny. On a busy machine two threads wait for each other: a fill beside another
program took 4.4 s instead of 0.4 s.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
