"""Every layout on real ranks (gloo), against one process: tests/ranks.py says what is compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = Path(__file__).with_name("ranks.py")


def run(*arguments):
    done = subprocess.run(
        [sys.executable, str(RANKS), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "world",
    [2, *(pytest.param(world, marks=pytest.mark.slow) for world in (1, 3, 4, 6, 8))],
)
def test_every_layout_holds_the_bits_of_one_process(world):
    found = json.loads(run(world).splitlines()[-1])
    wrong = {name: said for name, said in found.items() if said != "equal"}
    assert found
    assert not wrong, "\n".join(wrong.values())


RECIPES = {"fsdp": 2, "fsdp x tp": 4, "hsdp": 4, "pipeline": 2, "transformers": 2, "checkpoint": 2}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RECIPES)), ids=list(RECIPES))
def test_recipes_of_the_page_run(number):
    run("--recipe", list(RECIPES.values())[number], number)


def test_every_recipe_is_run():
    page = RANKS.parents[1] / "docs" / "scale.md"
    assert page.read_text(encoding="utf-8").count("```py\n") == len(RECIPES)
