"""Recurrent layers over time against torch: outputs, last states, gradients of inputs, weights, states.

States are taken for Gaussian and gates for independent of what they gate: errors of a few per cent for
weights of torch's default size, more where memories saturate.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fanin import _signal as signal
from fanin._capture import capture
from fanin._inputs import as_inputs
from fanin._moments import recurrent, registry
from fanin._moments.domain import added, concatenated, constant, full, measured
from fanin._moments.timeline import Grid, Ragged
from fanin._weights import of_model
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

GATES = recurrent.GATES
Case = partial(AnyCase, draws=60, rtol=0.05, grad_rtol=0.1)


def parameters(op, c, h, layers=1, directions=1, biases=True, v=1 / 3, projection=0):
    """As torch draws them: variance v / h."""
    rows, state = GATES[op] * h, projection or h
    found = []
    for k in range(layers):
        width = c if k == 0 else state * directions
        for _ in range(directions):
            found += [full((rows, width), v / h), full((rows, state), v / h)]
            found += [full((rows,), v / h)] * 2 * biases
            found += [full((state, h), v / h)] * bool(projection)
    return found


def sequence(
    op,
    t=7,
    b=3,
    c=10,
    h=24,
    layers=1,
    directions=1,
    biases=True,
    v=1 / 3,
    x=None,
    state=0.0,
    projection=0,
    **options,
):
    """Arguments of a layer on inputs that share a part over time and over samples."""
    if x is None:
        x = added(added(full((t, b, c), 0.6), full((1, b, c), 0.3)), full((1, 1, c), 0.1)).plain()
    frames = layers * directions
    hx = [full((frames, b, projection or h), state), full((frames, b, h), state)]
    return {
        "x": x, "hx": hx if op == "lstm" else hx[0],
        "params": parameters(op, c, h, layers, directions, biases, v, projection),
        "has_biases": biases, "num_layers": layers, "dropout": 0.0, "train": False,
        "bidirectional": directions == 2, "batch_first": False, **options,
    }  # fmt: skip


def at_the_end(t, b, h):
    """A gradient of the last state alone."""
    return concatenated([constant((t - 1, b, h), 0.0), full((1, b, h), 1.0)], 0)


def packed(op, sizes=(4, 3, 3, 1), c=10, h=24, directions=1):
    given = sequence(op, b=sizes[0], c=c, h=h, directions=directions)
    del given["x"], given["batch_first"]
    return {"data": full((sum(sizes), c), 1.0), "batch_sizes": measured(np.array(sizes)), **given}


def single(op, b=5, c=10, h=24, biases=True):
    w = [full((GATES[op] * h, n), 1 / (3 * h)) for n in (c, h)]
    own = [full((GATES[op] * h,), 1 / (3 * h))] * 2 if biases else [None, None]
    hx = [correlated(b, h, scale=0.3), correlated(b, h, scale=0.6)]
    return {
        "x": correlated(b, c),
        "hx": hx if op == "lstm" else hx[0],
        "w_ih": w[0],
        "w_hh": w[1],
        "b_ih": own[0],
        "b_hh": own[1],
    }


ENDS, SIZES = measured(np.array([4, 4, 2, 1])), measured(np.array([4, 3, 2, 2]))
CASES = [
    *(Case(op, sequence(op)) for op in GATES),
    *(Case(op, sequence(op, biases=False, t=5, state=0.5), label="state") for op in GATES),
    *(Case(op, sequence(op, directions=2, layers=2, t=5, h=16), label="two-both-ways") for op in GATES),
    *(Case(op, sequence(op, v=1.0), label="large-weights", rtol=0.1, grad_rtol=0.2) for op in GATES),
    *(Case(op, packed(op), label="packed", rtol=0.08, grad_rtol=0.12) for op in GATES),
    *(Case(f"{op}_cell", single(op)) for op in GATES),
    *(Case(f"{op}_cell", single(op, biases=False), label="no-bias") for op in GATES),
    # Beyond 48 steps the last ones stand for the rest.
    *(Case(op, sequence(op, t=70, b=2, c=6, h=10), label="long", draws=40, rtol=0.08, grad_rtol=0.15) for op in GATES),
    Case("lstm", sequence("lstm", projection=9), label="projection"),
    Case("lstm", sequence("lstm", batch_first=True, x=correlated(3, 7, 10)), label="batch-first"),
    Case("gru", sequence("gru", x=stratified(9, 3, 10, dim=0)), label="strata"),
    # A gradient at the last time alone: the reverse direction's first step, where no state has been yet.
    *(Case(op, sequence(op, directions=2, layers=2, t=20, h=16), label="read-at-the-end", grad=at_the_end(20, 3, 32)) for op in GATES),
    Case("rnn_relu", sequence("rnn_relu", t=1, b=1), label="one-step"),
    Case("gru", packed("gru", directions=2), label="packed-both-ways", rtol=0.08, grad_rtol=0.15),
    *(AnyCase("_pack_padded_sequence", {"x": correlated(*shape, mean=0.3), "lengths": ENDS, "batch_first": first},
              label=str(first)) for first, shape in ((True, (4, 5, 6)), (False, (5, 4, 6)))),
    *(AnyCase("_pad_packed_sequence", {"data": correlated(11, 6, mean=0.3), "batch_sizes": SIZES, "batch_first": first,
              "padding_value": value, "total_length": length}, label=f"{first}-{value}")
      for first, value, length in ((True, 0.0, 0), (False, 0.7, 7))),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case):
    check_backward(case)


@pytest.mark.parametrize("table", [registry.FORWARD, registry.BACKWARD])
def test_every_rule_has_a_case(table):
    ops = {op for op, rule in table.items() if rule.function.__module__ == recurrent.__name__}
    assert ops == {case.op for case in CASES}


def test_gates_that_differ():
    """A bias of 2 on the forget gate alone: memories that last are larger."""
    h = 24
    given = sequence("lstm", t=12, h=h)
    forgetful = registry.FORWARD["lstm"](op="lstm", **given)
    bias = concatenated([constant((h,), 0.0), constant((h,), 2.0), constant((2 * h,), 0.0)], 0)
    params = [*given["params"][:2], bias, constant((4 * h,), 0.0)]
    case = Case("lstm", {**given, "params": params})
    lasting = registry.FORWARD["lstm"](op="lstm", **case.args)
    assert lasting[2].second_moment > 2 * forgetful[2].second_moment
    check_forward(case)


def test_packed_places_are_counted_exactly():
    """Pairs of places: two of one sequence, or of two, against a loop."""
    sizes = (4, 3, 3, 1)
    places = [(t, i) for t, n in enumerate(sizes) for i in range(n)]
    counted = np.zeros((4, 4, 2))
    for t, i in places:
        for s, j in places:
            counted[t, s, int(i != j)] += 1
    np.testing.assert_array_equal(Ragged(sizes).counts(), counted)


@pytest.mark.parametrize("length", [1, 7, 48, 100, 3000])
def test_steps_stand_for_all_pairs_of_times(length):
    assert Grid(length, 3).counts().sum() == pytest.approx(length**2 * 9)


def test_first_states_are_small():
    """Times are told apart: an LSTM's memory fills up."""
    y = registry.FORWARD["lstm"](op="lstm", **sequence("lstm", t=12))[0]
    assert len(y.dims[0][0]) > 2
    assert (np.diff(y.q[: len(y.dims[0][0]), 0, 0]) > 0).all()


class Encoder(torch.nn.Module):
    """Sequences of several lengths through a recurrent network, packed, and side by side again."""

    def __init__(self, kind: str, lengths: tuple[int, ...]):
        super().__init__()
        self.cell = getattr(torch.nn, kind.upper())(24, 32, batch_first=True, bidirectional=True)
        self.lengths = torch.tensor(lengths)

    def forward(self, x):
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, self.lengths, True, enforce_sorted=False
        )
        return torch.nn.utils.rnn.pad_packed_sequence(self.cell(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_packed_sequences_end_to_end(kind):
    """States over time, and gradients of weights, which add up over the times of one sequence.

    30 draws of weights: the standard error of a state's second moment is some 2 %, of a gradient's 3 to
    5 %. Rules take every sequence for as long as the longest in the recursion of its gradient, hence 25 %;
    for gradients that are the same at all times that is not enough (docs/moments.md), these are independent.
    """
    found: dict[str, list[float]] = {}
    for seed in range(30):
        torch.manual_seed(seed)
        model, x = Encoder(kind, (7, 3, 5, 7, 2)), torch.randn(5, 7, 24) + torch.randn(5, 1, 24)
        y = model(x)
        found.setdefault("y", []).append(y.square().mean().item())
        y.backward(torch.randn_like(y))
        for name, p in model.named_parameters():
            found.setdefault(name, []).append(p.grad.square().mean().item())
    graph = capture(model, as_inputs(x))
    signals = signal.forward(graph, of_model(model), inputs={
        i: added(full((5, 7, 24), 1.0), full((5, 1, 24), 1.0)).plain() for i in graph.inputs
    })  # fmt: skip
    signal.backward(signals, {graph.outputs[0]: full((5, 7, 64), 1.0)})
    assert not signals.failures
    assert not signals.drawn
    assert signals.values[graph.outputs[0]].second_moment == pytest.approx(
        np.mean(found.pop("y")), rel=0.1
    )
    for name, squares in found.items():
        predicted = signals.grads[graph.parameters[name]].second_moment
        assert predicted == pytest.approx(np.mean(squares), rel=0.25), name
