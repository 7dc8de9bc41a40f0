"""Views, parts, joins, shuffles, padding and windows: linear, so compared with their own matrices."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from exactly import assert_same, check_linear, written_out
from fanin._moments import boxes, maps, parts, registry, shuffles, views, windows
from fanin._moments.domain import (
    Abstract,
    concatenated,
    constant,
    cut,
    full,
    measured,
    permuted,
    reshaped,
)
from monte_carlo import Case
from tensors import correlated, stratified

X = correlated(2, 3, 4, mean=0.5)
S = stratified(2, 5, 3, dim=1)
M = stratified(4, 6, dim=0)
HEADS = reshaped(permuted(correlated(2, 3, 2, 2, mean=0.2), (0, 2, 1, 3)), (2, 2, 6))
IMAGE = stratified(1, 2, 5, 4, dim=2)


def view_write(x, value, starts, stops, steps):
    out = x.clone()
    ranges = tuple(slice(*r) for r in zip(starts, stops, steps, strict=True))
    out[ranges] = (
        value.reshape(out[ranges].shape) if value.numel() == out[ranges].numel() else value
    )
    return out


VIEWS = [
    *(
        Case(op, {"x": S}, call=lambda x: x.clone(), backward=False)
        for op in ("detach", "detach_copy")
    ),
    *(Case(op, {"x": S}, call=lambda x: x.clone()) for op in views._COPIES),
    Case("view", {"x": X, "size": [6, 4]}),
    Case("view_copy", {"x": X, "size": [6, 4]}),
    Case("view", {"x": S, "size": [2, 15]}, label="strata"),
    Case("view", {"x": S, "size": [6, 5]}, label="across"),
    Case("reshape", {"x": HEADS, "shape": [2, 2, 3, 2]}),
    Case("reshape", {"x": X, "shape": [2, 12]}, label="merge"),
    Case("_unsafe_view", {"x": X, "size": [24]}),
    Case("_reshape_alias", {"x": X, "size": [6, 4], "stride": [4, 1]}),
    Case("_reshape_copy", {"x": X, "size": [6, 4]}),
    Case("view_as", {"x": X, "other": measured(np.ones((6, 4)))}),
    Case("reshape_as", {"x": X, "other": measured(np.ones((8, 3)))}),
    Case("flatten", {"x": X, "start_dim": 1, "end_dim": -1}),
    Case("unflatten", {"x": HEADS, "dim": 2, "sizes": [3, 2]}),
    Case("squeeze", {"x": correlated(2, 1, 3)}),
    Case("squeeze_copy", {"x": correlated(2, 1, 3), "dim": 1}),
    Case("unsqueeze", {"x": S, "dim": 1}),
    Case("unsqueeze_copy", {"x": S, "dim": -1}),
    Case("ravel", {"x": S}),
    Case("atleast_1d", {"x": correlated()}),
    Case("atleast_2d", {"x": correlated(3)}),
    Case("atleast_3d", {"x": correlated(3)}),
    Case("transpose", {"x": S, "dim0": 0, "dim1": -1}),
    Case("transpose_copy", {"x": S, "dim0": 0, "dim1": -1}),
    Case("swapaxes", {"x": S, "axis0": 0, "axis1": 1}),
    Case("swapdims", {"x": S, "dim0": 0, "dim1": 1}),
    *(Case(op, {"x": M}) for op in ("t", "t_copy", "mT", "mH", "adjoint", "matrix_H", "numpy_T")),
    Case("t", {"x": correlated(5)}, label="vector"),
    Case("permute", {"x": S, "dims": [2, 0, 1]}),
    Case("permute_copy", {"x": S, "dims": [-1, 0, 1]}),
    Case("movedim", {"x": S, "source": [0], "destination": [2]}),
    Case("movedim", {"x": X, "source": [0, 2], "destination": [1, 0]}, label="two"),
    Case("moveaxis", {"x": S, "source": [0], "destination": [-1]}),
    Case("expand", {"x": correlated(2, 1, 3), "size": [4, 2, 5, 3], "implicit": False}),
    Case("expand_copy", {"x": stratified(4, 1), "size": [4, 3], "implicit": False}),
    Case("expand_as", {"x": correlated(3, 1), "other": measured(np.ones((2, 3, 4)))}),
    Case("broadcast_to", {"x": correlated(3, 1), "size": [2, 3, 4]}),
    Case("repeat", {"x": M, "repeats": [3, 1, 2]}),
    Case("repeat", {"x": M, "repeats": [1, 1, 1]}, label="once"),
    Case("tile", {"x": M, "dims": [2]}),
    Case("repeat_interleave", {"x": M, "repeats": 3, "dim": 1, "output_size": None}),
    Case(
        "repeat_interleave",
        {"x": correlated(2, 3), "repeats": 2, "dim": None, "output_size": None},
        label="flat",
    ),
    Case(
        "repeat_interleave",
        {"x": M, "repeats": measured(np.array([1, 0, 3, 2])), "dim": 0, "output_size": None},
        label="counts",
    ),
]
SHUFFLES = [
    Case("pixel_shuffle", {"x": correlated(1, 8, 2, 3), "upscale_factor": 2}),
    Case("pixel_unshuffle", {"x": correlated(1, 2, 4, 6), "downscale_factor": 2}),
    Case("channel_shuffle", {"x": correlated(2, 6, 2), "groups": 3}),
    Case(
        "native_channel_shuffle",
        {"x": correlated(1, 6, 2, 1), "groups": 2},
        call=lambda x, groups: torch.channel_shuffle(x, groups),
    ),
    Case("flip", {"x": S, "dims": [1, -1]}),
    Case("flip", {"x": HEADS, "dims": [2]}, label="factors"),
    Case("fliplr", {"x": M}),
    Case("flipud", {"x": M}),
    Case("roll", {"x": S, "shifts": [2], "dims": [1]}),
    Case("roll", {"x": HEADS, "shifts": [3, 1], "dims": [2, 1]}, label="factors"),
    Case("roll", {"x": correlated(2, 3), "shifts": [2], "dims": []}, label="flat"),
    Case("rot90", {"x": M, "k": 1, "dims": [0, 1]}),
    Case("rot90", {"x": S, "k": 2, "dims": [1, 2]}, label="half"),
    Case("rot90", {"x": S, "k": -1, "dims": [1, 2]}, label="back"),
]
PARTS = [
    Case("slice", {"x": S, "dim": 1, "start": 1, "end": 9223372036854775807, "step": 1}),
    Case("slice", {"x": correlated(2, 8), "dim": 1, "start": 1, "end": 8, "step": 2}, label="step"),
    Case(
        "slice",
        {"x": correlated(2, 8), "dim": -1, "start": -6, "end": -1, "step": 1},
        label="negative",
    ),
    Case("slice", {"x": HEADS, "dim": 2, "start": 2, "end": 4, "step": 1}, label="one-head"),
    Case("slice", {"x": HEADS, "dim": 2, "start": 1, "end": 6, "step": 2}, label="every-other"),
    Case("slice_copy", {"x": S, "dim": 1, "start": 0, "end": 1, "step": 1}),
    Case("narrow", {"x": S, "dim": 1, "start": 1, "length": 3}),
    Case("narrow_copy", {"x": S, "dim": 1, "start": 2, "length": 2}),
    Case("select", {"x": S, "dim": 1, "index": 0}),
    Case("select", {"x": S, "dim": 1, "index": -1}, label="last"),
    Case("select_copy", {"x": M, "dim": 0, "index": 3}),
    Case("chunk", {"x": stratified(2, 7, dim=1), "chunks": 3, "dim": 1}),
    Case("split", {"x": S, "split_size": 2, "dim": 1}),
    Case("split_copy", {"x": S, "split_size": 2, "dim": 1}),
    Case("split", {"x": HEADS, "split_size": [4, 2], "dim": -1}, label="sizes"),
    Case("split_with_sizes", {"x": S, "split_sizes": [1, 4], "dim": 1}),
    Case("split_with_sizes_copy", {"x": S, "split_sizes": [1, 4], "dim": 1}),
    Case("unsafe_split", {"x": S, "split_size": 3, "dim": 1}),
    Case("unsafe_split_with_sizes", {"x": S, "split_sizes": [1, 2, 2], "dim": 1}),
    Case("unsafe_chunk", {"x": S, "chunks": 2, "dim": 1}),
    Case("tensor_split", {"x": S, "sections": 2, "dim": 1}),
    Case("tensor_split", {"x": S, "indices": [1, 3], "dim": 1}, label="indices"),
    Case("hsplit", {"x": correlated(2, 6), "sections": 2}),
    Case("vsplit", {"x": correlated(6, 2), "sections": 3}),
    Case("dsplit", {"x": correlated(2, 1, 6), "sections": 2}),
    Case("unbind", {"x": S, "dim": 1}),
    Case("unbind_copy", {"x": M, "dim": 0}),
    Case("cat", {"tensors": [X, correlated(2, 5, 4, mean=-1.0)], "dim": 1}),
    Case("cat", {"tensors": [S, S, correlated(2, 2, 3)], "dim": -2}, label="three"),
    Case("cat", {"tensors": [HEADS, correlated(2, 2, 4, mean=1.0)], "dim": 2}, label="factors"),
    Case("concat", {"tensors": [M, correlated(1, 6)], "dim": 0}),
    Case("concatenate", {"tensors": [M, correlated(1, 6)], "dim": 0}),
    Case("stack", {"tensors": [M, correlated(4, 6, mean=1.0), M.plain()], "dim": 1}),
    Case("hstack", {"tensors": [M, correlated(4, 1)]}),
    Case("hstack", {"tensors": [correlated(3), correlated(2)]}, label="vectors"),
    Case("vstack", {"tensors": [correlated(3), correlated(3, mean=1.0)]}),
    Case("row_stack", {"tensors": [correlated(3), correlated(3, mean=1.0)]}),
    Case("dstack", {"tensors": [correlated(3), correlated(3, mean=1.0)]}),
    Case("column_stack", {"tensors": [correlated(3), correlated(3, 2, mean=1.0)]}),
    Case(
        "view_write",
        {
            "x": X,
            "value": correlated(2, 2, 3),
            "starts": (0, 1, 0),
            "stops": (2, 3, 3),
            "steps": (1, 1, 1),
        },
        call=view_write,
    ),
    Case(
        "view_write",
        {
            "x": S,
            "value": correlated(2, 3),
            "starts": (0, 2, 0),
            "stops": (2, 3, 3),
            "steps": (1, 1, 1),
        },
        call=view_write,
        label="one-token",
    ),
    Case(
        "view_write",
        {
            "x": correlated(2, 6),
            "value": correlated(2, 3, mean=1.0),
            "starts": (0, 1),
            "stops": (2, 6),
            "steps": (1, 2),
        },
        call=view_write,
        label="odd",
    ),
    Case(
        "view_write",
        {
            "x": correlated(3, 4, mean=1.0),
            "value": correlated(4),
            "starts": (1, 0),
            "stops": (3, 4),
            "steps": (1, 1),
        },
        call=view_write,
        label="broadcast",
    ),
    Case(
        "view_write",
        {"x": M, "value": correlated(4, 6), "starts": (0, 0), "stops": (4, 6), "steps": (1, 1)},
        call=view_write,
        label="all",
    ),
    Case(
        "slice_scatter",
        {"x": S, "src": correlated(2, 2, 3), "dim": 1, "start": 1, "end": 3, "step": 1},
    ),
    Case("select_scatter", {"x": S, "src": correlated(2, 3, mean=2.0), "dim": 1, "index": 0}),
]
WINDOWS = [
    Case("pad", {"x": IMAGE, "pad": [1, 0, 2, 1], "mode": "constant", "value": None}),
    Case("pad", {"x": IMAGE, "pad": [1, 1], "mode": "constant", "value": 2.0}, label="value"),
    Case(
        "pad", {"x": IMAGE, "pad": [1, 1, -1, 2], "mode": "constant", "value": None}, label="crop"
    ),
    Case(
        "pad", {"x": IMAGE, "pad": [2, 1, 1, 1], "mode": "reflect", "value": None}, label="reflect"
    ),
    Case(
        "pad",
        {"x": IMAGE, "pad": [1, 1, 0, 2], "mode": "replicate", "value": None},
        label="replicate",
    ),
    Case(
        "pad",
        {"x": IMAGE, "pad": [2, 1, 1, 0], "mode": "circular", "value": None},
        label="circular",
    ),
    Case("_pad_enum", {"x": IMAGE, "pad": [2, 1, 1, 1], "mode": 0, "value": None}),
    Case("_pad_circular", {"x": IMAGE, "pad": [1, 1, 2, 2]}),
    Case("constant_pad_nd", {"x": S, "pad": [0, 0, 3, 0], "value": 0}),
    Case("constant_pad_nd", {"x": HEADS, "pad": [2, 0], "value": 0}, label="factors"),
    Case("reflection_pad1d", {"x": S, "padding": [1, 2]}),
    Case("reflection_pad2d", {"x": IMAGE, "padding": [1, 2, 0, 1]}),
    Case("reflection_pad3d", {"x": correlated(1, 1, 2, 3, 3), "padding": [1, 1, 1, 0, 1, 0]}),
    Case("replication_pad1d", {"x": S, "padding": [1, 2]}),
    Case("replication_pad2d", {"x": IMAGE, "padding": [1, 2, 0, 1]}),
    Case("replication_pad3d", {"x": correlated(1, 1, 2, 2, 2), "padding": [1, 1, 1, 0, 1, 0]}),
    Case("unfold", {"x": correlated(2, 7), "dimension": 1, "size": 3, "step": 2}),
    Case("unfold", {"x": HEADS, "dimension": 2, "size": 2, "step": 2}, label="tiles"),
    Case("unfold", {"x": stratified(7, 2), "dimension": 0, "size": 3, "step": 1}, label="strata"),
    Case("unfold_copy", {"x": correlated(2, 7), "dimension": 1, "size": 3, "step": 2}),
    Case(
        "im2col",
        {
            "x": correlated(1, 2, 5, 4),
            "kernel_size": [3, 2],
            "dilation": [1, 2],
            "padding": [1, 0],
            "stride": [2, 1],
        },
    ),
    Case(
        "col2im",
        {
            "x": correlated(1, 12, 6),
            "output_size": [5, 4],
            "kernel_size": [3, 2],
            "dilation": [1, 2],
            "padding": [1, 0],
            "stride": [2, 1],
        },
    ),
    Case("diagonal", {"x": correlated(3, 4, 2), "offset": 1, "dim1": 0, "dim2": 1}),
    Case("diagonal_copy", {"x": correlated(3, 4, 2), "offset": -1, "dim1": 1, "dim2": 0}),
    Case(
        "linalg_diagonal",
        {"x": correlated(2, 3, 3), "offset": 0, "dim1": -2, "dim2": -1},
        call=lambda x, **a: torch.linalg.diagonal(x, **a),
    ),
    Case("diag", {"x": correlated(3, 5), "diagonal": 1}),
    Case("diag", {"x": correlated(3), "diagonal": -1}, label="vector"),
    Case("diag_embed", {"x": correlated(2, 3), "offset": 1, "dim1": 0, "dim2": -1}),
    Case(
        "as_strided", {"x": correlated(12), "size": [3, 4], "stride": [2, 1], "storage_offset": 1}
    ),
    Case(
        "as_strided_copy",
        {"x": correlated(3, 4), "size": [2, 3, 2], "stride": [4, 1, 2], "storage_offset": 0},
    ),
]
CASES = [*VIEWS, *SHUFFLES, *PARTS, *WINDOWS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear(case):
    check_linear(case, backward=case.backward)


def test_every_rule_has_a_case():
    mine = {m.__name__ for m in (views, shuffles, parts, windows)}
    complex_views = {op for op in registry.FORWARD if op.startswith("view_as_")} - {"view_as"}
    for table in (registry.FORWARD, registry.BACKWARD):
        ops = {op for op, rule in table.items() if rule.function.__module__ in mine}
        assert ops - {case.op for case in CASES} == complex_views


def test_segments_survive_join_and_split():
    """Unequal halves side by side and apart again: what went in comes out, and so for gradients."""
    a, b = correlated(2, 3, 4, mean=1.0), correlated(2, 7, 4, mean=-1.0, scale=3.0)
    joint = concatenated([a, b], 1)
    for part, there in ((a, cut(joint, 1, 0, 3)), (b, cut(joint, 1, 3, 10))):
        assert_same("part", there, *written_out(part))
    given = {"x": joint, "shapes": [a.shape, b.shape], "dim": 1, "op": "split"}
    back = registry.BACKWARD["split"](**given, grads=[a, b])["x"]
    assert_same("gradient", back, *written_out(joint))


def test_packed_heads_are_taken_apart_without_loss():
    """[q | k | v] of 3 heads of 4 each: chunk, heads, tokens in front of them."""
    q, k, v = (
        correlated(2, 5, 3, 4, mean=m, scale=s) for m, s in ((0.0, 1.0), (1.0, 2.0), (0.0, 3.0))
    )
    packed = concatenated([reshaped(part, (2, 5, 12)) for part in (q, k, v)], 2)
    for part, start in ((q, 0), (k, 12), (v, 24)):
        heads = permuted(reshaped(cut(packed, 2, start, start + 12), (2, 5, 3, 4)), (0, 2, 1, 3))
        assert_same("heads", heads, *written_out(permuted(part, (0, 2, 1, 3))))
        assert heads.dims == permuted(part, (0, 2, 1, 3)).dims


def test_windows_of_a_shifted_image_come_back():
    """Swin: shift, cut into windows, and back; tokens of a window stay together."""
    windows_first = correlated(2, 2, 2, 3, 3, 4)
    image = reshaped(permuted(windows_first, (0, 1, 3, 2, 4, 5)), (2, 6, 6, 4))
    there = shuffles.roll(shuffles.roll(image, [-3], [1]), [3], [1])
    again = permuted(reshaped(there, (2, 2, 3, 2, 3, 4)), (0, 1, 3, 2, 4, 5))
    np.testing.assert_allclose(again.q, windows_first.q, atol=1e-12)
    shifted = shuffles.roll(image, [-1, -1], [1, 2])
    assert [len(d) for d in shifted.dims] == [1, 2, 2, 1]


@pytest.mark.parametrize("op", ["view_as_complex", "view_as_real"])
def test_complex_views(op):
    """|z|^2 is what both parts' squares add up to; the parts of circular noise share it."""
    real = parts.stack([correlated(3, 4, mean=1.0), correlated(3, 4)], 2)
    z = views.view_as_complex(real)
    mean, matrix = written_out(real)
    by_part = matrix.reshape(12, 2, 12, 2)
    want = by_part[:, 0, :, 0] + by_part[:, 1, :, 1]
    assert_same("complex", z, mean.reshape(12, 2)[:, 0], want)
    if op == "view_as_real":
        back = views.view_as_real(z)
        assert back.shape == (3, 4, 2)
        assert back.second_moment * 2 == pytest.approx(z.second_moment)
        grad = registry.BACKWARD[op](grad=full((3, 4, 2), 1.0))["x"]
        assert grad.second_moment == pytest.approx(2.0)
    else:
        grad = registry.BACKWARD[op](grad=full((3, 4), 2.0))["x"]
        assert grad.shape == (3, 4, 2)
        assert grad.second_moment == pytest.approx(1.0)


def test_known_numbers_follow_views():
    ids = np.arange(24).reshape(2, 3, 4)
    x = measured(ids)
    assert (views.transpose(x, 0, 2).known == ids.transpose(2, 1, 0)).all()
    assert (parts.select(x, 1, -1).known == ids[:, -1]).all()
    assert (parts.slice_(x, 2, 1, None, 2).known == ids[:, :, 1::2]).all()
    assert (shuffles.roll(x, [1], [2]).known == np.roll(ids, 1, 2)).all()
    assert (parts.cat([x, x], 1).known == np.concatenate([ids, ids], 1)).all()
    assert (views.reshape(x, [(4, 6)]).known == ids.reshape(4, 6)).all()
    assert (
        views.expand(measured(ids[:, :1]), [(2, 5, 4)]).known
        == np.broadcast_to(ids[:, :1], (2, 5, 4))
    ).all()


def test_writes_that_are_no_box_keep_the_average():
    base, value = full((4, 6), 1.0), full((4, 3), 5.0)
    out = parts.view_write(base, value)
    assert out.second_moment == pytest.approx(3.0)
    grads = registry.BACKWARD["view_write"](x=base, value=value, grad=full((4, 6), 1.0))
    assert grads["x"].second_moment == pytest.approx(0.5)
    assert grads["value"].second_moment == pytest.approx(1.0)


def test_an_empty_cache_before_the_keys_counts_for_nothing():
    empty, keys = measured(np.zeros((0,))), correlated(2, 3)
    assert parts.cat([empty, keys], -2) is keys
    grads = registry.BACKWARD["cat"](grad=full((2, 3), 1.0), tensors=[empty, keys], dim=-2)
    assert grads["tensors"][0] is None


def test_many_parts_keep_the_tables_small():
    joint = concatenated([full((2, 1, 3), 1.0 + k) for k in range(100)], 1)
    assert joint.q.size < 2000
    assert joint.second_moment == pytest.approx(50.5)
    assert isinstance(joint, Abstract)
    wide = boxes.written(
        constant((2, 100, 3), 1.0), full((2, 1, 3), 9.0), boxes.box_on((2, 100, 3), 1, 4, 5)
    )
    assert wide.second_moment == pytest.approx((99 + 9) / 100)


def test_examples():
    assert doctest.testmod(maps).failed == 0
