"""Every code block of README and docs runs; every docstring example prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fanin

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/fanin/explanations/*.md")]
)
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LONG = ("fanin demo",)  # these have tests of their own, in test_experiments.py


def blocks(page: Path, language: str) -> list[str]:
    return [
        code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """An empty folder with examples/ beside, as a reader in a clone has it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_blocks(page, workshop):
    """The blocks of a page run in order, in one namespace; prompts make a block a doctest."""
    scope: dict[str, object] = {"__name__": "__docs__"}
    for code in blocks(page, "python"):
        if code.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, scope, name(page), str(page), 0)
            runner = doctest.DocTestRunner(
                optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            runner.run(test, clear_globs=False)
            assert not runner.failures, f"{name(page)}: see the output above"
            scope.update(test.globs)
        else:
            exec(compile(code, name(page), "exec"), scope)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "console")], ids=name)
def test_console_blocks(page, workshop):
    """Each `$ fanin ...` line ends with 0, or 1 where there are findings; never 2."""
    for code in blocks(page, "console"):
        for line in code.splitlines():
            command = line.removeprefix("$ ").split("#")[0].strip()
            if not line.startswith("$ fanin") or command.startswith(LONG):
                continue
            words = [sys.executable, "-m", "fanin", *shlex.split(command)[1:]]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode in (0, 1), f"{command}\n{done.stdout}\n{done.stderr}"


def modules() -> list[str]:
    found = pkgutil.walk_packages(fanin.__path__, "fanin.")
    return [m.name for m in found if m.name != "fanin.__main__"]


@pytest.mark.parametrize("module", modules())
def test_docstring_examples(module):
    if module.startswith("fanin._rng.gpu_"):
        pytest.importorskip("triton", reason="an extra: pip install 'fanin[gpu]'")
    loaded = importlib.import_module(module)
    result = doctest.testmod(loaded, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_name_has_a_docstring():
    for public in fanin.__all__:
        value = getattr(fanin, public)
        assert public == "__version__" or (value.__doc__ or "").strip(), public


def test_every_page_is_linked():
    """A page of docs/ that no other page names is lost."""
    text = "".join(p.read_text(encoding="utf-8") for p in PAGES)
    for page in ROOT.glob("docs/**/*.md"):
        assert f"{page.stem}.md" in text, f"{name(page)} is linked from nowhere"
