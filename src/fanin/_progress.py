"""A progress bar on stderr for work that takes longer than two seconds, where a person looks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 2.0  # seconds of silence before the bar is drawn


@contextmanager
def progress_bar(title: str, patience: float = PATIENCE) -> Iterator[Callable[[float, str], None]]:
    """A bar that appears once ``patience`` has run out and vanishes at the end.

    Args:
        title: what is being done.
        patience: seconds.

    Yields:
        A function to be told (fraction done, what is being done); a bar that is never told runs
        to and fro. Without a terminal on stderr nothing is drawn.
    """
    if not sys.stderr.isatty():
        yield lambda _fraction, _text: None
        return
    bar = _Bar(title)
    timer = threading.Timer(patience, bar.show)
    timer.daemon = True
    timer.start()
    try:
        yield bar.tell
    finally:
        timer.cancel()
        bar.hide()


class _Bar:
    """rich's bar, made only when it is shown."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.fraction: float | None = None
        self._progress: Any = None
        self._task: Any = None
        self._over = False
        self._lock = threading.Lock()

    def show(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - only slow work pays for it
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        with self._lock:
            if self._over:
                return
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            console = Console(stderr=True, width=80)
            self._progress = Progress(
                *columns, console=console, transient=True, redirect_stdout=False
            )
            self._task = self._progress.add_task(self.title, total=None)
            self._progress.start()
        self.tell(self.fraction, self.title)

    def tell(self, fraction: float | None, text: str) -> None:
        self.fraction, self.title = fraction, text
        with self._lock:
            if self._progress is not None and not self._over:
                total = None if fraction is None else 1.0
                self._progress.update(
                    self._task, total=total, completed=fraction or 0.0, description=text
                )

    def hide(self) -> None:
        with self._lock:
            self._over = True
            if self._progress is not None:
                self._progress.stop()
