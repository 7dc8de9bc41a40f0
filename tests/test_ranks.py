"""Every layout on real ranks (gloo), against one process: tests/ranks.py says what is compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = Path(__file__).with_name("ranks.py")


@pytest.mark.parametrize(
    "world",
    [2, *(pytest.param(world, marks=pytest.mark.slow) for world in (1, 3, 4, 6, 8))],
)
def test_every_layout_holds_the_bits_of_one_process(world):
    done = subprocess.run(
        [sys.executable, str(RANKS), str(world)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = {name: said for name, said in found.items() if said != "equal"}
    assert found
    assert not wrong, "\n".join(wrong.values())
