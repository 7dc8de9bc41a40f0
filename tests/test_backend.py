"""Who draws, where and with what memory: `_rng.backend`."""

from __future__ import annotations

import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from fanin import _rng as rng
from fanin import fill_
from fanin._rng import Stream, backend
from fanin._rng.backend import Memory, runs
from fanin.distributions import Normal, TruncatedNormal, Uniform
from portable import specified

MIB = 2**20


@pytest.fixture
def nothing_loaded(monkeypatch):
    """As in a fresh process, but that kernels are made at once."""
    monkeypatch.setattr(backend, "_loaded", {})
    monkeypatch.setattr(backend, "_asked", {})
    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.delenv(backend.PORTABLE, raising=False)


def into(array, draw, threads=1):
    """Fill a matrix."""
    where = Memory(
        array.ctypes.data, array.strides[0], array.dtype.name, array.itemsize, array.itemsize
    )
    rows, columns = (range(n) for n in array.shape)
    return draw.into(where, Stream("w"), rows, columns, threads=threads)


# Loading


def test_a_kernel_is_made_once_enough_was_asked(nothing_loaded, monkeypatch):
    made = []
    monkeypatch.setattr(backend, "_made", lambda draw, law, dtype: made.append((law, dtype)))
    monkeypatch.setattr(backend, "LOADING_PAYS", 10 * backend.CALL)
    draw, array = rng.laws.normal(1.0, 0.0, np.float32), np.empty((1, backend.CALL), np.float32)
    for _ in range(8):
        assert not into(array, draw)
        # A call counts as CALL elements, and as the elements that it asks for.
        assert made == ([] if _ < 4 else [("normal_32", "float32")])


def test_many_threads_that_ask_at_once_get_one_kernel(nothing_loaded, monkeypatch):
    made = []

    def slowly(draw, law, dtype):
        made.append(law)
        time.sleep(0.05)

    monkeypatch.setattr(backend, "_made", slowly)
    draw = rng.laws.normal(1.0, 0.0, np.float32)
    asking = [threading.Thread(target=draw.writer, args=("float32", 1)) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert made == ["normal_32"]


def test_a_kernel_with_other_bits_is_not_used(nothing_loaded, monkeypatch):
    kernels = pytest.importorskip("fanin._rng.kernels")
    true_kernel = kernels.kernel

    def wrong(law, dtype):
        write = true_kernel(law, dtype)

        def twisted(job):
            write(job)
            address = int.from_bytes(job[:8], "little")
            numbers = np.ctypeslib.as_array(
                (np.ctypeslib.ctypes.c_uint32 * 1).from_address(address)
            )
            numbers[0] ^= 1

        return twisted

    monkeypatch.setattr(kernels, "kernel", wrong)
    draw, found = rng.laws.normal(1.0, 0.0, np.float32), np.full((2, 70), 7, np.float32)
    with pytest.warns(RuntimeWarning, match="normal_32 for float32 .* other bits"):
        assert not into(found, draw)
    assert (found == 7).all()
    assert not into(found, draw)  # and it says so once


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_where_no_code_can_be_made_numpy_draws(nothing_loaded, monkeypatch, error):
    kernels = pytest.importorskip("fanin._rng.kernels")

    def fails(*_):
        raise error("not on this system")

    monkeypatch.setattr(kernels, "kernel", fails)
    law = Normal(0.5)
    monkeypatch.setattr("fanin._fill._known", {})
    with pytest.warns(RuntimeWarning, match="not on this system.*same numbers"):
        found = fill_(torch.empty(100), law, key="w")
    with specified():
        assert torch.equal(found, fill_(torch.empty(100), law, key="w"))


# Cutting


def test_runs():
    assert runs(np.array([3])) == [(0, 3, 1)]
    assert runs(np.array([4, 5, 6])) == [(0, 4, 3)]
    assert runs(range(0, 6, 2)) == [(0, 0, 1), (1, 2, 1), (2, 4, 1)]
    assert runs(np.array([2, 1, 0])) == [(0, 2, 1), (1, 1, 1), (2, 0, 1)]
    assert runs(np.array([7, 9, 8, 10])) == [(0, 7, 1), (1, 9, 1), (2, 8, 1), (3, 10, 1)]
    pick = np.random.default_rng(0).integers(0, 12, 200)
    spread = [i for _, first, n in runs(pick) for i in range(first, first + n)]
    assert spread == pick.tolist()


BOXES = [
    ([(0, 0, 1)], [(0, 0, 500_001)]),
    ([(0, 5, 700)], [(0, 37, 999)]),
    ([(0, 5, 2), (2, 9, 3)], [(0, 37, 99_999), (99_999, 200_000, 10)]),
    ([(0, 0, 100_000)], [(0, 0, 3)]),
]


def covered(rows, columns, boxes, multiple):
    count = np.zeros((sum(n for *_, n in rows), sum(n for *_, n in columns)), int)
    row_of = np.concatenate([np.arange(first, first + n) for _, first, n in rows])
    column_of = np.concatenate([np.arange(first, first + n) for _, first, n in columns])
    for (i, row, height), (j, column, width) in boxes:
        count[i : i + height, j : j + width] += 1
        assert (row_of[i : i + height] == np.arange(row, row + height)).all()
        assert (column_of[j : j + width] == np.arange(column, column + width)).all()
        assert column % multiple == 0 or column in [first for _, first, _ in columns]
    return count


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("rows", "columns"), BOXES)
def test_parts_cover_the_grid_once(rows, columns, threads):
    boxes = list(backend._parts(rows, columns, threads))
    assert len(boxes) >= threads
    assert (covered(rows, columns, boxes, backend.RUN) == 1).all()


@pytest.mark.parametrize(("down", "across"), [backend.BLOCK, (1, 128)])
@pytest.mark.parametrize(("rows", "columns"), [([(0, 5, 700)], [(0, 37, 999)]), ([(0, 0, 3)], [(0, 0, 1)])])  # fmt: skip
def test_cuts_cover_a_box_once(rows, columns, down, across):
    boxes = list(backend._cut((rows[0], columns[0]), down, across))
    assert (covered(rows, columns, boxes, across) == 1).all()
    assert max(height for (*_, height), _ in boxes) <= down
    assert max(width for _, (*_, width) in boxes) <= across


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_box_is_worked_on_once(threads):
    boxes = [((0, i, 1), (0, 0, 1)) for i in range(300)]
    done = []
    backend.in_turn(done.append, iter(boxes), threads)
    assert sorted(done) == boxes


def test_an_error_in_a_thread_is_raised():
    def fails(box):
        time.sleep(0.01)  # so that the other thread, too, gets some
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(str(box))

    boxes = [((0, i, 1), (0, 0, 1)) for i in range(20)]
    with pytest.raises(ValueError, match="0"):
        backend.in_turn(fails, iter(boxes), 2)


# Memory


LAWS = [Normal(1.0), Uniform(-1, 1), TruncatedNormal(1.0, 3.0), TruncatedNormal(1.0, 4.5)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
VIEWS = {
    "contiguous": ((200, 1000), lambda t: t),
    "one row": ((200_000,), lambda t: t),
    "transposed": ((1000, 200), lambda t: t.T),
    "channels last": ((30, 30, 15, 15), lambda t: t.permute(0, 3, 1, 2)),
    "one long row": ((1, 200, 1000), lambda t: t.transpose(1, 2)),
    "axes in reverse": ((50, 20, 20, 10), lambda t: t.permute(3, 2, 1, 0)),
}


def peak_of(work):
    """Bytes of Python's and numpy's at most, beyond what there was; torch's: see the test below."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("who", ["kernels", "the specification"])
def test_extra_memory_is_below_a_mebibyte(view, who, monkeypatch):
    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.setenv(backend.PORTABLE, str(int(who != "kernels")))
    monkeypatch.setattr("fanin._fill._known", {})
    shape, turn = VIEWS[view]
    laws = LAWS if view in ("contiguous", "transposed") else LAWS[-1:]
    for law in laws:
        for dtype in [*DTYPES, *([torch.complex128] if isinstance(law, Normal) else [])]:
            tensor = turn(torch.empty(shape, dtype=dtype))
            fill_(tensor[:1], law, key="w")
            assert peak_of(lambda t=tensor, law=law: fill_(t, law, key="w")) < MIB, (law, dtype)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_shards_take_no_memory_either(real, monkeypatch):
    """Every other index, as a strided shard has it: many short runs, none of which waits in memory."""
    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.delenv(backend.PORTABLE, raising=False)
    draw = rng.laws.truncated_normal(1.0, 3.0, 0.0, real)
    rows, columns = np.arange(0, 60, 3), np.arange(0, 4000, 2)
    out = np.empty((rows.size, columns.size), real)
    size = out.itemsize
    where = Memory(out.ctypes.data, columns.size * size, out.dtype.name, size, size)
    into(np.empty((1, 1), real), draw)
    peak = peak_of(lambda: draw.into(where, Stream("w"), rows, columns, threads=1))
    assert peak < MIB


def test_the_process_grows_by_less_than_a_mebibyte_a_thread(monkeypatch):
    """What torch, LLVM's code and the stacks take, too: the largest resident size that Linux saw."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("this system does not tell a process's largest size")

    def sizes():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return [1024 * int(lines[k].split()[0]) for k in ("VmRSS", "VmHWM")]

    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.delenv(backend.PORTABLE, raising=False)
    layouts = {
        "contiguous": ((2048, 2048), lambda t: t),
        "transposed": ((2048, 2048), lambda t: t.T),
        "channels last": ((512, 3, 3, 1024), lambda t: t.permute(0, 3, 1, 2)),
    }
    for name, (shape, turn) in layouts.items():
        for dtype in (torch.float32, torch.bfloat16):
            tensor = turn(torch.zeros(shape, dtype=dtype))
            for threads in (1, 2):
                torch.set_num_threads(threads)
                fill_(tensor, Normal(1.0), key="w")
                reset.write_text("5")
                before, _ = sizes()
                fill_(tensor, Normal(1.0), key="w")
                _, most = sizes()
                torch.set_num_threads(1)
                assert most - before < threads * MIB, (name, dtype, threads)
