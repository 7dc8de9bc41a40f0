from __future__ import annotations

import io
import sys
import threading
import time

from fanin._progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(screen, word):
    """Until the bar's own thread has drawn it; 10 s is far more than it needs."""
    end = time.monotonic() + 10
    while word not in screen.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    return word in screen.getvalue()


def test_a_pipe_sees_nothing(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar("work", patience=0.0) as tell:
        tell(0.5, "half")
    assert screen.getvalue() == ""


def test_quick_work_sees_nothing_and_leaves_no_thread(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    before = threading.active_count()
    with progress_bar("work", patience=60.0) as tell:
        tell(0.5, "half")
    assert screen.getvalue() == ""
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_slow_work_gets_a_bar_that_follows_and_vanishes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar("work", patience=0.0) as tell:
        assert wait_for(screen, "work")
        tell(0.5, "half of it")
        assert wait_for(screen, "half of it")
    assert screen.getvalue().endswith("\x1b[2K") or "\x1b[2K" in screen.getvalue()[-40:]


def test_a_failure_takes_the_bar_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    before = threading.active_count()
    try:
        with progress_bar("work", patience=0.0):
            assert wait_for(screen, "work")
            raise ValueError
    except ValueError:
        pass
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
