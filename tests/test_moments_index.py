"""Reading, writing and adding at indices: known ones exactly, unknown ones against drawn ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exactly import check_linear
from fanin._moments import index, indexing, registry, scatter, write
from fanin._moments.domain import expanded, full, measured
from fanin._moments.indexing import integers
from fanin._moments.registry import BACKWARD, FORWARD
from monte_carlo import Case, check_backward, check_forward
from tensors import correlated, stratified

X = correlated(4, 5, 3, mean=0.5)
S = stratified(2, 6, 3, dim=1)
TABLE = correlated(5, 3, mean=1.0)


def known(*numbers, shape=None):
    array = np.array(numbers)
    return measured(array if shape is None else array.reshape(shape))


IDS = known(0, 3, 3, 1, 4, 0, shape=(2, 3))
MASK = measured(np.array([True, False, True, True]))
ZEROS = measured(np.zeros((4, 3)))

LINEAR = [
    Case("index", {"x": TABLE, "indices": [IDS]}),
    Case("index", {"x": X, "indices": [None, known(4, 0, 0, -1)]}, label="middle"),
    Case("index", {"x": X, "indices": [known(0, 1, 3), known(2, 2, 4)]}, label="two"),
    Case("index", {"x": X, "indices": [known(0, 1, 3), None, known(2, 2, 0)]}, label="apart"),
    Case(
        "index", {"x": X, "indices": [known(0, 1, shape=(2, 1)), known(2, 4, 1)]}, label="broadcast"
    ),
    Case("index", {"x": X, "indices": [MASK]}, label="mask"),
    Case(
        "index",
        {"x": correlated(2, 3), "indices": [measured(np.array([[1, 0, 1], [1, 1, 0]], bool))]},
        label="mask-2d",
    ),
    Case("_unsafe_index", {"x": TABLE, "indices": [IDS]}),
    Case("index_select", {"x": S, "dim": 1, "index": known(0, 5, 1, 1)}),
    Case("take", {"x": TABLE, "index": IDS}),
    Case(
        "masked_select",
        {"x": correlated(2, 3), "mask": measured(np.array([[1, 0, 1], [1, 1, 0]], bool))},
    ),
    Case(
        "index_add",
        {"x": TABLE, "dim": 0, "index": known(1, 1, 3), "source": correlated(3, 3), "alpha": 2.0},
    ),
    Case(
        "index_add",
        {"x": ZEROS, "dim": 0, "index": known(1, 1, 3), "source": correlated(3, 3), "alpha": 1},
        label="zeros",
    ),
    Case(
        "index_copy",
        {
            "x": stratified(6, 3),
            "dim": 0,
            "index": known(2, 3, 4),
            "source": correlated(3, 3, mean=1.0),
        },
    ),
    Case(
        "index_put",
        {"x": TABLE, "indices": [known(1, 1, 3)], "values": correlated(3, 3), "accumulate": True},
        label="add",
    ),
    Case(
        "index_put",
        {
            "x": TABLE,
            "indices": [known(1, 2, 3)],
            "values": correlated(3, 3, mean=-1.0),
            "accumulate": False,
        },
        label="range",
    ),
    Case(
        "_unsafe_index_put",
        {"x": TABLE, "indices": [known(1, 1, 3)], "values": correlated(3, 3), "accumulate": True},
    ),
    Case(
        "scatter_reduce",
        {
            "x": ZEROS,
            "dim": 0,
            "index": expanded(known(1, 1, 3, 3, 0, shape=(5, 1)), (5, 3)),
            "src": correlated(5, 3),
            "reduce": "mean",
            "include_self": False,
        },
        backward=False,
        label="mean",
    ),
]


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_linear(case):
    check_linear(case, backward=case.backward)


def unknown(*shape, n):
    """Indices that are not known; the call draws them."""
    return integers(shape, n)


def drawing(run, n, *, name="index", distinct=None):
    """The op at indices drawn anew."""

    def call(**given):
        shape = given[name].shape
        if distinct is None:
            drawn = torch.randint(n, tuple(shape))
        else:
            drawn = torch.rand(*shape[:-1], n).argsort(-1)[..., : shape[-1]]
        return run(**{**given, name: drawn})

    return call


ROUTES = integers((6, 2), 4, distinct=1)
LONG = np.array([[0, 2, 1], [1, 1, 1], [3, 2, 0], [4, 4, 4], [2, 0, 3], [0, 1, 2]])
UNKNOWN = [
    Case(
        "index",
        {"x": TABLE, "indices": [unknown(2, 3, n=5)]},
        call=lambda x, indices: x[torch.randint(5, (2, 3))],
        label="unknown",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "index",
        {"x": X, "indices": [known(0, 1, 2, 3), unknown(4, n=5)]},
        call=lambda x, indices: x[indices[0], torch.randint(5, (4,))],
        label="half-known",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "index",
        {"x": X, "indices": [full((4,), 0.5, 0.5)]},
        call=lambda x, indices: x[torch.randperm(4)[:2]],
        label="unknown-mask",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "index_select",
        {"x": S, "dim": 1, "index": unknown(4, n=6)},
        call=drawing(lambda x, dim, index: torch.index_select(x, dim, index), 6),
        label="unknown",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "gather",
        {"x": TABLE, "dim": 0, "index": measured(LONG[:, :3] % 5), "sparse_grad": False},
        label="known",
    ),
    Case(
        "gather",
        {"x": TABLE, "dim": 1, "index": measured(LONG[:4, :2] % 3), "sparse_grad": False},
        label="shorter",
    ),
    Case(
        "gather",
        {
            "x": TABLE,
            "dim": 0,
            "index": expanded(known(4, 0, 0, shape=(3, 1)), (3, 3)),
            "sparse_grad": False,
        },
        label="rows",
    ),
    Case(
        "gather",
        {"x": TABLE, "dim": 0, "index": unknown(6, 3, n=5), "sparse_grad": False},
        call=drawing(lambda x, dim, index, sparse_grad: torch.gather(x, dim, index), 5),
        label="unknown",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "gather",
        {"x": correlated(6, 4), "dim": 1, "index": ROUTES, "sparse_grad": False},
        call=drawing(lambda x, dim, index, sparse_grad: torch.gather(x, dim, index), 4, distinct=1),
        label="distinct",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "take_along_dim",
        {
            "x": correlated(4, 1, mean=1.0),
            "indices": known(0, 2, 3, 1, 1, 1, shape=(2, 3)),
            "dim": 0,
        },
    ),
    Case("take_along_dim", {"x": TABLE, "indices": known(0, 14, 3), "dim": None}, label="flat"),
    Case(
        "scatter_add", {"x": TABLE, "dim": 0, "index": measured(LONG % 5), "src": correlated(6, 3)}
    ),
    Case(
        "scatter_add",
        {"x": ZEROS, "dim": 0, "index": measured(LONG % 4), "src": correlated(6, 3, mean=1.0)},
        label="zeros",
    ),
    Case(
        "scatter_add",
        {"x": ZEROS, "dim": 0, "index": unknown(6, 3, n=4), "src": correlated(6, 3)},
        call=drawing(lambda x, dim, index, src: torch.scatter_add(x, dim, index, src), 4),
        label="unknown",
        draws=250,
        rtol=0.03,
    ),
    Case(
        "scatter",
        {
            "x": TABLE,
            "dim": 0,
            "index": known(0, 1, 2, 3, 4, 0, shape=(2, 3)),
            "src": correlated(2, 3, mean=2.0),
        },
        rtol=0.05,
    ),
    Case(
        "scatter",
        {"x": ZEROS, "dim": 0, "index": known(0, 1, 2, 3, 2, 0, shape=(2, 3)), "value": 1.0},
        label="one-hot",
        backward=False,
    ),
    Case(
        "scatter",
        {"x": measured(np.zeros((6, 4))), "dim": 1, "index": ROUTES, "value": 1.0},
        call=drawing(
            lambda x, dim, index, value: torch.scatter(x, dim, index, value), 4, distinct=1
        ),
        label="routes",
        backward=False,
    ),
    Case(
        "scatter",
        {
            "x": TABLE,
            "dim": 0,
            "index": measured(LONG % 5),
            "src": correlated(6, 3),
            "reduce": "add",
        },
        label="add",
        call=lambda x, dim, index, src, reduce: torch.scatter_add(x, dim, index, src),
    ),
    Case(
        "scatter",
        {
            "x": TABLE,
            "dim": 0,
            "index": known(0, 1, 2, shape=(1, 3)),
            "value": 3.0,
            "reduce": "multiply",
        },
        label="multiply",
        backward=False,
        rtol=0.06,
    ),
    Case(
        "scatter_reduce",
        {
            "x": TABLE,
            "dim": 0,
            "index": measured(LONG % 5),
            "src": correlated(6, 3),
            "reduce": "sum",
            "include_self": True,
        },
    ),
    Case(
        "scatter_reduce",
        {
            "x": TABLE,
            "dim": 0,
            "index": measured(np.repeat(np.arange(5), 3)[:, None] + np.zeros((1, 3), int)),
            "src": correlated(15, 3),
            "reduce": "mean",
            "include_self": True,
        },
        label="mean-self",
    ),
    Case(
        "scatter_reduce",
        {
            "x": full((5, 3), 1.0),
            "dim": 0,
            "index": measured(np.repeat(np.arange(5), 3)[:, None] + np.zeros((1, 3), int)),
            "src": full((15, 3), 1.0),
            "reduce": "amax",
            "include_self": True,
        },
        label="amax",
        rtol=0.04,
        grad_rtol=0.05,
    ),
    Case(
        "index_reduce",
        {
            "x": full((5, 3), 1.0),
            "dim": 0,
            "index": measured(np.repeat(np.arange(5), 3)),
            "source": full((15, 3), 1.0),
            "reduce": "amin",
            "include_self": False,
        },
        rtol=0.04,
        grad_rtol=0.05,
    ),
    Case(
        "index_copy",
        {"x": TABLE, "dim": 0, "index": known(4, 1), "source": correlated(2, 3, mean=1.0)},
        label="scattered",
        rtol=0.05,
    ),
    Case("index_fill", {"x": TABLE, "dim": 0, "index": known(4, 1), "value": 2.0}),
    Case(
        "index_put",
        {
            "x": TABLE,
            "indices": [known(4, 1)],
            "values": correlated(2, 3, mean=1.0),
            "accumulate": False,
        },
        label="scattered",
        rtol=0.05,
    ),
    Case(
        "index_put",
        {
            "x": TABLE,
            "indices": [known(4, 1), known(0, 0)],
            "values": correlated(2, mean=1.0),
            "accumulate": False,
        },
        label="points",
        rtol=0.05,
    ),
    Case(
        "_index_put_impl",
        {
            "x": TABLE,
            "indices": [measured(np.array([1, 0, 0, 1, 0], bool))],
            "values": full((1,), 4.0),
            "accumulate": False,
            "unsafe": False,
        },
        call=lambda x, indices, values, **_: torch.ops.aten.index_put(x, indices, values),
        label="mask",
        rtol=0.1,
    ),
    Case(
        "masked_scatter",
        {
            "x": full((4, 3), 1.0),
            "mask": measured(np.arange(12).reshape(4, 3) % 3 == 0),
            "source": full((4,), 4.0),
        },
    ),
    Case(
        "put",
        {
            "x": full((4, 3), 1.0, 0.5),
            "index": known(0, 5, 7),
            "source": full((3,), 4.0),
            "accumulate": False,
        },
        grad_rtol=0.05,
    ),
    Case(
        "diagonal_scatter",
        {"x": full((4, 4), 1.0), "src": full((4,), 4.0), "offset": 0, "dim1": 0, "dim2": 1},
        rtol=0.05,
        grad_rtol=0.05,
    ),
]


@pytest.mark.parametrize("case", UNKNOWN, ids=str)
def test_forward(case):
    torch.manual_seed(0)
    check_forward(case)


@pytest.mark.parametrize("case", [case for case in UNKNOWN if case.backward], ids=str)
def test_backward(case):
    torch.manual_seed(1)
    check_backward(case)


NUMBERS = {"nonzero", "argwhere", "nonzero_numpy", "bucketize", "searchsorted"}


def test_indices_themselves():
    x = measured(np.array([[0, 2], [3, 0]]))
    assert (FORWARD["nonzero"](x=x, shapes=[(2, 2)]).known == [[0, 1], [1, 0]]).all()
    assert (FORWARD["argwhere"](x=x, shapes=[(2, 2)]).known == [[0, 1], [1, 0]]).all()
    assert [i.known.tolist() for i in FORWARD["nonzero_numpy"](x=x, shapes=[(2,)] * 2)] == [
        [0, 1],
        [1, 0],
    ]
    rows = FORWARD["nonzero_numpy"](x=full((5, 9), 0.5, 0.5), shapes=[(20,), (20,)])
    assert [i.average_mean for i in rows] == [2.0, 4.0]
    assert FORWARD["nonzero"](x=full((5, 9), 0.5, 0.5), shapes=[(20, 2)]).average_mean == 3.0
    edges = measured(np.array([0.0, 1.0, 2.0]))
    assert (
        FORWARD["bucketize"](x=full((7,), 1.0), boundaries=edges, shapes=[(7,)]).average_mean == 1.5
    )
    assert (
        FORWARD["searchsorted"](
            x=full((7,), 1.0), sorted_sequence=edges, shapes=[(7,)]
        ).average_mean
        == 1.5
    )


def test_distinct_indices_never_coincide():
    p = indexing.coincidence(integers((6, 3), 8, distinct=1), 8)
    assert p.q[0, 0] == 1.0
    assert p.q[0, 1] == pytest.approx(0.0, abs=1e-12)
    assert p.q[1, 1] == pytest.approx(1 / 8)


def test_known_indices_are_counted_once():
    ids = known(0, 1, 2, 0, 1, 0)
    assert indexing.coincidence(ids, 5) is indexing.coincidence(known(0, 1, 2, 0, 1, 0), 5)
    assert indexing.coincidence(ids, 5).q.tolist() == pytest.approx([1.0, 8 / 30])


def test_an_embedding_of_a_large_vocabulary_costs_only_tables():
    ids = measured(np.random.default_rng(0).integers(0, 50257, (2, 1024)))
    out = FORWARD["index"](x=full((50257, 768), 4e-4), indices=[ids], shapes=[(2, 1024, 768)])
    assert out.shape == (2, 1024, 768)
    back = BACKWARD["index"](grad=out, x=full((50257, 768), 4e-4), indices=[ids])["x"]
    assert back.shape == (50257, 768)
    assert back.second_moment * 50257 / 2048 == pytest.approx(4e-4, rel=0.05)


def test_every_rule_has_a_case():
    ops = {case.op for case in [*LINEAR, *UNKNOWN]}
    mine = {index.__name__, scatter.__name__, write.__name__}
    for table, more in ((registry.FORWARD, NUMBERS), (registry.BACKWARD, set())):
        assert {op for op, r in table.items() if r.function.__module__ in mine} == ops | more


def test_one_token_of_every_row():
    """``x[arange(n), [i, i, ...]]`` is ``x[:, i]``: the gradient knows which position it came from."""
    x, rows = full((3, 7, 5), 2.0), measured(np.arange(3))
    same = [rows, measured(np.full(3, 4))]
    y = registry.FORWARD["index"](x=x, indices=same, shapes=[(3, 5)])
    assert y.dims == registry.FORWARD["select"](x=x, dim=1, index=4).dims
    back = registry.BACKWARD["index"](grad=full((3, 5), 1.0), x=x, indices=same)["x"]
    assert back.dims[1] == ((4, 1, 2),)
    np.testing.assert_allclose(back.q[0, :3, 0], [0.0, 1.0, 0.0])
    apart = [rows, measured(np.array([4, 4, 3]))]
    even = registry.BACKWARD["index"](grad=full((3, 5), 1.0), x=x, indices=apart)["x"]
    assert even.second_moment == pytest.approx(1 / 7)
