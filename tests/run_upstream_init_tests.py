"""Run PyTorch's own test/nn/test_init.py against `fanin.init`: one import line is changed.

    python tests/run_upstream_init_tests.py path/to/pytorch/test/nn/test_init.py

The file is PyTorch's and not part of this repository. It needs scipy and expecttest. Further
arguments go to unittest; PYTORCH_TEST_WITH_SLOW=1 adds the slow tests (on by default here).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

OLD, NEW = "import torch.nn.init as init\n", "import fanin.init as init\n"


def rewritten(source: str) -> str:
    """The test file's text with `fanin.init` under test."""
    if source.count(OLD) != 1:
        raise SystemExit(f"expected exactly one line {OLD.strip()!r}; found {source.count(OLD)}.")
    return source.replace(OLD, NEW)


def main(path: str, *options: str) -> int:
    """Run it in a process of its own; the exit code is unittest's."""
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, "test_init_on_fanin.py")
        test.write_text(rewritten(Path(path).read_text()))
        command = [sys.executable, str(test), *options]
        environment = {"PYTORCH_TEST_WITH_SLOW": "1", **os.environ}
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
