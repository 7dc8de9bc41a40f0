"""The GPU kernel: words drawn and turned into numbers where the tensor lies, by Triton.

A program draws a box of LINES x TILES tiles. Its blocks of four words form a LINES x TILES x 16
array, whose four lanes are stored one after the other, each as runs of 16 columns. Importing this
file imports triton: `gpu` does so once there is a GPU to write to.
"""

# Triton's language, not Python's: every argument is a tensor or a constexpr.
# ruff: noqa: ANN001, ANN202, D417, PLR0917, RET505
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from . import gpu_math as m

# What changes from tensor to tensor: a kernel compiled for its value would serve that one alone.
_VARYING = [
    *("k0", "k1", "s2", "s3"),
    *(f"n{i}" for i in range(11)),
    *("row", "height", "tile", "across", "inner"),
]


@triton.jit
def _uniform_32(word, n):
    value = m.signed_uniform_32(word) * n[0].to(tl.float32) + n[1].to(tl.float32)
    return m.clip(value, n[2].to(tl.float32), n[3].to(tl.float32))


@triton.jit
def _uniform_64(high, low, n):
    return m.clip(m.signed_uniform_64(high, low) * n[0] + n[1], n[2], n[3])


@triton.jit
def _truncated(word, n, rational: tl.constexpr):
    z = m.truncated(word, n[0], n[1], rational)
    value = z * n[2].to(tl.float32) + n[3].to(tl.float32)
    return m.clip(value, n[4].to(tl.float32), n[5].to(tl.float32))


@triton.jit
def _window_64(high, low, n):
    z = m.clip(m.window(high, low, n[0], n[1], n[2]), n[3], n[4])
    return m.clip(m.clip(z * n[5] + n[6], n[7], n[8]), n[9], n[10])


@triton.jit
def _window_32(high, low, n):
    z = m.clip(m.window(high, low, n[0], n[1], n[2]), n[3], n[4])
    value = m.clip(z * n[5] + n[6], n[7], n[8]).to(tl.float32)
    return m.clip(value, n[9].to(tl.float32), n[10].to(tl.float32))


@triton.jit
def _pair(even, odd, even_low, odd_low, n, LAW: tl.constexpr):
    """Two lanes' values: from their words, their low words and the law's numbers."""
    if LAW == "uniform_32":
        return _uniform_32(even, n), _uniform_32(odd, n)
    elif LAW == "uniform_64":
        return _uniform_64(even, even_low, n), _uniform_64(odd, odd_low, n)
    elif LAW == "normal_32":
        a, b = m.box_muller_32(even, odd)
        std, mean = n[0].to(tl.float32), n[1].to(tl.float32)
        return a * std + mean, b * std + mean
    elif LAW == "normal_64":
        a, b = m.box_muller_64(even, even_low, odd, odd_low)
        return a * n[0] + n[1], b * n[0] + n[1]
    elif LAW == "truncated_2":
        return _truncated(even, n, 2), _truncated(odd, n, 2)
    elif LAW == "truncated_3":
        return _truncated(even, n, 3), _truncated(odd, n, 3)
    elif LAW == "window_32":
        return _window_32(even, even_low, n), _window_32(odd, odd_low, n)
    else:
        tl.static_assert(LAW == "window_64")
        return _window_64(even, even_low, n), _window_64(odd, odd_low, n)


@triton.jit
def _real(bits):
    """A number from its bits: as a float argument it would have come rounded to 32 bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _store(line, value, local, first, begin, stop, inside, step, inner, outer_step, FOLDED: tl.constexpr):  # fmt: skip
    """One lane: ``value`` at the positions ``first + local``, where begin <= local < stop."""
    place = first + local
    if FOLDED:
        position = place.to(tl.int32)
        offset = (position // inner).to(tl.int64) * outer_step
        offset += (position % inner).to(tl.int64) * step
    else:
        offset = place * step
    dtype: tl.constexpr = line.dtype.element_ty
    rounded = m.to_bfloat16(value) if dtype == tl.bfloat16 else value.to(dtype)
    tl.store(line + offset, rounded, mask=inside & (local >= begin) & (local < stop))


@triton.jit(do_not_specialize=_VARYING)
def fill(
    out, row_step, step, inner, outer_step,
    k0, k1, s2, s3,
    n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10,
    row, height, position, tile, across, skip, end,
    LAW: tl.constexpr, LOW: tl.constexpr, FOLDED: tl.constexpr,
    LINES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write a run of columns of a run of rows of a stream's table into memory.

    Args:
        out: where the first row of the run lies.
        row_step, step, inner, outer_step: position p of row r lies ``r row_step + p step`` elements
            on; folded, ``r row_step + (p // inner) outer_step + (p % inner) step``.
        k0, k1, s2, s3: the stream's words, as signed numbers.
        n0 to n10: the bits of the law's numbers.
        row, height: the first row's index, and how many.
        position: that of the first tile's first column.
        tile, across: the first tile's index, and how many programs share a row.
        skip, end: the run begins at column ``skip`` of the first tile and ends before ``end``.
        LAW: as in `laws`.
        LOW: whether it needs low words.
        FOLDED: whether columns lie in memory by two steps.
        LINES, TILES: rows and tiles of a program.
    """
    program = tl.program_id(0)
    right = program % across * TILES
    lines = (program // across).to(tl.int64) * LINES + tl.arange(0, LINES)[:, None, None]
    tiles = tl.arange(0, TILES)[None, :, None]
    places = tl.arange(0, 16)[None, None, :]

    block = (tile + right + tiles).to(tl.uint32) * 16 + places.to(tl.uint32)
    rows = (row + lines).to(tl.uint32)
    k0, k1, s2, s3 = k0.to(tl.uint32), k1.to(tl.uint32), s2.to(tl.uint32), s3.to(tl.uint32)
    w0, w1, w2, w3 = m.philox(block, rows, k0, k1, s2, s3)
    l0, l1, l2, l3 = w0, w1, w2, w3
    if LOW:
        l0, l1, l2, l3 = m.philox(block, rows, k0, k1, s2, s3 | 0x80000000)
    n = (
        _real(n0), _real(n1), _real(n2), _real(n3), _real(n4), _real(n5),
        _real(n6), _real(n7), _real(n8), _real(n9), _real(n10),
    )  # fmt: skip
    v0, v1 = _pair(w0, w1, l0, l1, n, LAW)
    v2, v3 = _pair(w2, w3, l2, l3, n, LAW)

    base = right.to(tl.int64) * 64
    begin = tl.maximum(skip - base, 0).to(tl.int32)
    stop = tl.minimum(end - base, 64 * TILES).to(tl.int32)
    line, inside, local = out + lines * row_step, lines < height, tiles * 64 + places
    first = position + base
    _store(line, v0, local, first, begin, stop, inside, step, inner, outer_step, FOLDED)
    _store(line, v1, local + 16, first, begin, stop, inside, step, inner, outer_step, FOLDED)
    _store(line, v2, local + 32, first, begin, stop, inside, step, inner, outer_step, FOLDED)
    _store(line, v3, local + 48, first, begin, stop, inside, step, inner, outer_step, FOLDED)
