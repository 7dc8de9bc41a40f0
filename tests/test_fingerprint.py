"""Fingerprints add up over shards, find single bits, and say whether a model is as planned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import fanin
from fanin import FlatRange, IndexVectors, ModelError
from fanin._fingerprint import fingerprint
from fanin._rng.checksum import FACTORS, MASK, STEP, checksum, mixed
from fanin._shards import index_of
from fanin.distributions import Kept, Normal, Orthogonal

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.complex128]  # fmt: skip


def slowly(words, indices):
    """The law in Python's whole numbers."""
    total = 0
    for word, index in zip(words, indices, strict=True):
        place = (index + 1) * STEP & MASK
        z = (word ^ place >> 32) * FACTORS[0] & MASK
        z = (z ^ place) * FACTORS[1] & MASK
        total += z ^ z >> 32
    return total & MASK


@pytest.mark.parametrize("portable", ["", "1"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (2, 15), (5, 33), (1, 70)])
def test_kernel_and_numpy_are_the_law(shape, size, portable, monkeypatch):
    monkeypatch.setenv("FANIN_PORTABLE", portable)
    words = (
        np.random.default_rng(1).integers(0, 2 ** (8 * size), shape, np.uint64).astype(f"u{size}")
    )
    rows, columns, width = range(2, 2 + shape[0]), np.arange(shape[1])[::-1] + 7, 200
    found = checksum(words, rows, columns, width)
    places = [r * width + int(c) for r in rows for c in columns]
    assert found == slowly(words.reshape(-1).tolist(), places)


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), st.integers(0, 2**60))
def test_the_mix_is_one_to_one(word, bit, index):
    """An odd factor times a word of 32 bits, xor, an odd factor modulo 2^64, xor of a shift: all invertible."""
    place = np.uint64((index + 1) * STEP & MASK)
    with np.errstate(over="ignore"):
        one, other = (mixed(np.uint64(w), place) for w in (word, word ^ 1 << bit))
    assert one != other


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_sums_over_any_split_are_the_whole(rows, columns, data):
    tensor = torch.randn(rows, columns)
    whole = fingerprint(index_of(tensor))
    a = data.draw(st.integers(0, rows))
    b = data.draw(st.integers(0, columns))
    parts = [
        IndexVectors((rows, columns), (r, c)).shards(tensor[r.start : r.stop, c.start : c.stop])
        for r in (range(a), range(a, rows))
        for c in (range(b), range(b, columns))
    ]
    assert sum(fingerprint(s) for part in parts for s in part) % 2**64 == whole
    k = data.draw(st.integers(0, rows * columns))
    flat = tensor.flatten()
    pieces = FlatRange((rows, columns)).shards(flat[:k]) + FlatRange((rows, columns), k).shards(
        flat[k:]
    )
    assert sum(map(fingerprint, pieces)) % 2**64 == whole


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_counts_in_every_dtype_and_layout(dtype):
    tensor = torch.randn(6, 5).to(dtype)
    whole = fingerprint(index_of(tensor))
    assert fingerprint(index_of(tensor.t().contiguous().t())) == whole
    raw = tensor.view(torch.uint8).reshape(-1)
    for place in (0, raw.numel() // 2, raw.numel() - 1):
        raw[place] ^= 1
        assert fingerprint(index_of(tensor)) != whole
        raw[place] ^= 1
    assert fingerprint(index_of(tensor)) == whole
    swapped = tensor.clone()
    swapped[0], swapped[1] = tensor[1], tensor[0]
    assert fingerprint(index_of(swapped)) != whole


def net():
    return nn.Sequential(
        nn.Embedding(11, 6, padding_idx=2),
        nn.LSTM(6, 4),
        nn.MultiheadAttention(6, 2),
        nn.Linear(6, 7),
    )


def plan_of(model):
    return fanin.plan(model, scheme="kaiming", overrides={"3.weight": Orthogonal()})


def test_the_plan_alone_gives_the_fingerprints(monkeypatch):
    from fanin import _verify

    model = net()
    plan = plan_of(model)
    plan.fill_(model, seed=9)
    expected = plan.fingerprint(9)
    assert list(expected) == list(plan.names)
    for name, parameter in model.named_parameters():
        assert fingerprint(index_of(parameter)) == expected[name], name
    monkeypatch.setattr(_verify, "PIECE", 7)
    assert plan.fingerprint(9) == expected
    assert plan.fingerprint(8) != expected


def test_verify_names_what_differs():
    model = net()
    plan = plan_of(model)
    plan.fill_(model, seed=9)
    plan.verify(model, 9)
    plan.verify(model, None)
    with torch.no_grad():
        model[1].weight_hh_l0.view(torch.int32)[3, 1] ^= 1
    with pytest.raises(ModelError, match=r"not as planned:\n  1\.weight_hh_l0: .*not the plan's\n"):
        plan.verify(model, 9)
    plan.verify(model, None)
    with pytest.raises(ModelError, match=r"3\.weight: all ranks"):
        plan.verify(model, 10)


def test_verify_a_part_of_a_model():
    model = net()
    plan = plan_of(model)
    plan.fill_(model, seed=9)
    model[0] = nn.Identity()
    with pytest.raises(ModelError, match=r"0\.weight: no rank holds it"):
        plan.verify(model, 9)
    plan.within(model).verify(model, 9)


def test_kept_rows_have_no_fingerprint_and_parametrized_ones_are_compared_between_ranks():
    model = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3)))
    plan = fanin.plan(model, overrides={"0.weight": Kept(0.0, 1.0), "1.weight": Normal(1.0)})
    plan.fill_(model)
    assert "0.weight" not in plan.fingerprint()
    plan.verify(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    plan.verify(model)
