"""To draw by the specification alone, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fanin import _fill
from fanin._rng import backend


@contextmanager
def specified() -> Iterator[None]:
    """No kernel draws, and none is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.PORTABLE, "1")
        patch.setattr(_fill, "_known", {})
        yield
