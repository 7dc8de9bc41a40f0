"""Tables read by tokens: collisions are counted on the real tokens, so rules are exact."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fanin._capture import capture
from fanin._check import propagated
from fanin._inputs import as_inputs
from fanin._moments import embedding, registry
from fanin._moments.domain import full, measured
from fanin._moments.embedding import largest_of, shares
from fanin._moments.indexing import integers
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated

F = torch.nn.functional
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, (3, 11))
PADDED = np.where(np.arange(11) < np.array([[11], [6], [3]]), RNG.integers(1, 7, (3, 11)), 0)
FLAT, OFFSETS = RNG.integers(0, 7, 14), np.array([0, 3, 3, 8])
Case = partial(AnyCase, draws=200)


def known(array):
    return measured(np.asarray(array))


def plain(weight, indices, **options):
    return {
        "weight": weight,
        "indices": indices,
        "padding_idx": -1,
        "scale_grad_by_freq": False,
        "sparse": False,
        **options,
    }


def read_padded(weight, indices, padding_idx, **rest):
    """With a padding row of zeros, as nn.Embedding makes it."""
    zero = torch.arange(len(weight))[:, None] == padding_idx
    return torch.ops.aten.embedding(weight.masked_fill(zero, 0.0), indices, padding_idx, **rest)


def bag(weight, indices, offsets, **options):
    return {"weight": weight, "indices": known(indices), "offsets": known(offsets), "scale_grad_by_freq": False,
            "mode": 0, "sparse": False, "per_sample_weights": None, "include_last_offset": False, **options}  # fmt: skip


def first(**given):
    return torch.ops.aten.embedding_bag(**given)[0]


def first_padded(**given):
    return torch.ops.aten._embedding_bag(**given)[0]


TABLE = correlated(7, 5, mean=0.3)
CASES = [
    Case("embedding", plain(TABLE, known(TOKENS))),
    Case("embedding", plain(TABLE, known(np.broadcast_to(np.arange(6), (3, 6)))), label="positions"),
    Case("embedding", plain(TABLE, known(np.array(4))), label="scalar"),
    Case("embedding", plain(TABLE, known(PADDED), padding_idx=0), call=read_padded, label="padding"),
    Case("embedding", plain(TABLE, known(TOKENS), scale_grad_by_freq=True), label="frequency"),
    Case("embedding", plain(full((40, 64), 1.0), known(RNG.integers(0, 40, (2, 9)))), label="independent"),
    # Norms of 256 numbers spread by 4 %.
    Case("embedding_renorm", {"x": full((6, 256), 4.0), "indices": known(np.arange(6)), "max_norm": 8.0, "norm_type": 2.0},
         backward=False),
    Case("embedding_renorm", {"x": full((6, 256), 4.0), "indices": known(np.arange(6)), "max_norm": 100.0, "norm_type": 1.0},
         backward=False, label="taxi"),
    Case("one_hot", {"x": known(TOKENS), "num_classes": 7}, backward=False, draws=2),
    Case("embedding_bag", bag(TABLE, FLAT, OFFSETS), call=first),
    Case("embedding_bag", bag(TABLE, FLAT, OFFSETS, mode=1), call=first, label="mean"),
    Case("embedding_bag", bag(TABLE, FLAT, [*OFFSETS, 14], include_last_offset=True), call=first, label="last-offset"),
    Case("embedding_bag", bag(TABLE, FLAT, OFFSETS, per_sample_weights=correlated(14, mean=0.5)), call=first, label="weighted"),
    # Winners of four channels and the rows that they share: second order in the collisions.
    Case("embedding_bag", bag(full((60, 4), 1.0, 0.2), RNG.permutation(60)[:24], [0, 6, 12, 18], mode=2),
         call=first, label="max", rtol=0.02, grad_rtol=0.06),
    Case("_embedding_bag", bag(TABLE, FLAT, OFFSETS, padding_idx=2, mode=1), call=first_padded, label="padding"),
    Case("_embedding_bag_forward_only", bag(TABLE, FLAT, OFFSETS), call=first),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.backward], ids=str)
def test_backward(case):
    check_backward(case)


@pytest.mark.parametrize("table", [registry.FORWARD, registry.BACKWARD])
def test_every_rule_has_a_case(table):
    ops = {op for op, rule in table.items() if rule.function.__module__ == embedding.__name__}
    assert ops <= {case.op for case in CASES}
    if table is registry.FORWARD:
        assert ops == {case.op for case in CASES}


def test_unknown_tokens_collide_by_chance():
    y = registry.FORWARD["embedding"](weight=full((50, 8), 2.0), indices=integers((4, 9), 50))
    assert y.second_moment == pytest.approx(2.0)
    assert y.q[1, 1, 0] == pytest.approx(2.0 / 50)


def test_known_tables_give_known_rows():
    """Rotary and sinusoidal tables are constants, and stay so."""
    table = RNG.standard_normal((9, 4))
    y = registry.FORWARD["embedding"](weight=known(table), indices=known(TOKENS))
    np.testing.assert_array_equal(y.known, table[TOKENS])


def test_one_hot_by_chance():
    """Too large to be written out: 1/V, and pairs as their tokens."""
    y = registry.FORWARD["one_hot"](x=integers((40, 900), 50000), shapes=[(40, 900, 50000)])
    assert y.average_mean == pytest.approx(1 / 50000)
    assert y.q[1, 1, 0] == pytest.approx(50000**-2)


def test_shares_are_counted_exactly():
    """Against a loop over all pairs of positions."""
    counts = RNG.random(TOKENS.shape)
    found = shares(TOKENS, counts).equal.q
    expected, pairs = np.zeros((2, 2)), np.zeros((2, 2))
    places = list(np.ndindex(TOKENS.shape))
    for p in places:
        for q in places:
            which = tuple(int(a != b) for a, b in zip(p, q))
            pairs[which] += 1
            expected[which] += (TOKENS[p] == TOKENS[q]) * counts[p] * counts[q]
    np.testing.assert_allclose(found, expected / pairs)


def test_gradients_of_padding_and_lengths_of_bags():
    grads = registry.BACKWARD["embedding"](
        grad=full((3, 11, 5), 1.0),
        weight=TABLE,
        indices=known(PADDED),
        padding_idx=0,
        scale_grad_by_freq=False,
    )["weight"]
    weight = torch.zeros(7, 5, requires_grad=True)
    F.embedding(torch.as_tensor(PADDED), weight, padding_idx=0).backward(torch.ones(3, 11, 5))
    per_row = weight.grad[:, 0]
    assert grads.second_moment == pytest.approx(float(per_row.sum()) / 7)


@pytest.mark.parametrize("n", [1, 2, 9, 64])
def test_largest_of_several(n):
    """200 000 draws: standard error of a mean below 0.0041, of a variance below 0.0058."""
    x = np.random.default_rng(1).standard_normal((60_000, n)).max(axis=1)
    mean, variance = largest_of(float(n))
    assert mean == pytest.approx(x.mean(), abs=0.02)
    assert variance == pytest.approx(x.var(), abs=0.025)


def test_outputs_that_are_empty_are_no_failure():
    """A bag's offsets and sizes, which torch leaves out where it can."""
    tables = torch.nn.EmbeddingBag(50, 8, mode="sum")
    graph = capture(tables, as_inputs((torch.arange(12), torch.tensor([0, 4, 9]))))
    signals = propagated(tables, graph)
    assert not signals.failures
    assert not signals.uncovered
    assert not signals.drawn
    assert any(0 in v.shape for v in graph.values)
