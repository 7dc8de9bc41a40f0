"""One layer of a recurrent network in one direction: its weights by gate, its states, its gradients.

What a cell does over time is in `cells`, its gradient in `bptt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import bptt, cells, strata
from .cells import Gaussian, Track, Weights
from .domain import Abstract, cut, merge_dim, uniform
from .strata import Array
from .timeline import Function, Grid, Ragged, frame, unrolled

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "rnn_tanh": (np.tanh, cells.tanh_slope),
    "rnn_relu": (cells.rectified, cells.step),
}


@dataclass(frozen=True, eq=False)
class Parameters:
    """Of one layer in one direction, in torch's order.

    Args:
        w_ih: (gates times units) x inputs.
        w_hh: (gates times units) x states.
        b_ih: bias of the former, if any.
        b_hh: bias of the latter.
        w_hr: the projection of an LSTM's state.
    """

    w_ih: Abstract
    w_hh: Abstract
    b_ih: Abstract | None = None
    b_hh: Abstract | None = None
    w_hr: Abstract | None = None

    @property
    def given(self) -> list[Abstract]:
        """Those that exist."""
        every = (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr)
        return [x for x in every if x is not None]

    def gates(self, count: int) -> list[Parameters]:
        """Those of each gate; one for all where nothing tells them apart."""
        parts = [self.w_ih, self.w_hh, self.b_ih, self.b_hh]
        if all(x is None or not x.dims[0] or len(x.dims[0][0]) == 1 for x in parts):
            return [self]
        units = self.w_hh.shape[0] // count
        found = []
        for k in range(count):
            rows = [None if x is None else cut(x, 0, k * units, (k + 1) * units) for x in parts]
            found.append(Parameters(*rows))  # type: ignore[arg-type]
        return found


def matrix(w: Abstract, rows: int | None = None) -> Weights:
    """A weight's moments by whether rows and columns are the same; ``rows`` of them where not all."""
    shape = w.shape
    w = uniform(merge_dim(merge_dim(w, 0), 1))
    q = w.q
    for axis, dim in enumerate(w.dims):
        if not dim:
            q = np.repeat(np.expand_dims(q, axis), 2, axis)
    return Weights(q, w.average_mean, rows or shape[0], shape[1])


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one direction: its arguments and what it did.

    Args:
        op: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        grid: lengths of the sequences.
        x: its input, (time, batch, inputs) or packed.
        parameters: its weights.
        backwards: whether it runs from the end.
        track: its states.
    """

    op: str
    grid: Grid | Ragged
    x: Abstract
    parameters: Parameters
    backwards: bool
    track: Track

    @property
    def units(self) -> int:
        """Of the state that is passed on."""
        return self.parameters.w_hh.shape[1]

    @property
    def projection(self) -> Weights | None:
        """Of an LSTM's state."""
        w = self.parameters.w_hr
        return None if w is None else matrix(w)

    @property
    def output(self) -> Abstract:
        """All states."""
        h = self.track.h
        out = self.grid.write(h.q[1:, 1:], h.mean[1:], self.units, backwards=self.backwards)
        out.noise = self.x.noise
        return out

    @property
    def last(self) -> Abstract:
        """The last state, (1, batch, units)."""
        h = self.track.h
        return self.grid.last(h.q[1:, 1:], h.mean[1:], self.units)

    @property
    def memory(self) -> Abstract:
        """An LSTM's last memory."""
        c = self.track.extra["memory"]
        return self.grid.last(c.q[1:, 1:], c.mean[1:], self.parameters.w_hh.shape[0] // 4)


def run(
    op: str,
    grid: Grid | Ragged,
    x: Abstract,
    parameters: Parameters,
    state: Sequence[Abstract],
    *,
    backwards: bool,
) -> Layer:
    """One layer in one direction.

    Args:
        op: which cell.
        grid: lengths of the sequences.
        x: (time, batch, inputs) or packed.
        parameters: its weights.
        state: h and, of an LSTM, c at the start, (1, batch, units) each.
        backwards: whether it runs from the end.
    """
    gates = parameters.gates(GATES[op])
    units = parameters.w_hh.shape[0] // GATES[op]
    alike = gates if len(gates) == 1 else None
    h, c = (*map(_started, state), None)[:2]

    seen, means = grid.read(x, backwards=backwards)

    def brought(p: Parameters, *biases: Abstract | None) -> Gaussian:
        w = matrix(p.w_ih, units)
        q, mean = w.applied(seen), w.columns * w.mean * means
        for bias in biases:
            own, center = _constant(bias)
            q = q + own + center * np.add.outer(mean, mean)[..., None, None]
            mean = mean + center
        return Gaussian(q, mean)

    if op == "gru":
        first = alike or gates[:2]
        p = gates[-1]
        new = (brought(p, p.b_ih), matrix(p.w_hh, units), *_constant(p.b_hh))
        track = cells.gru(
            [brought(g, g.b_ih, g.b_hh) for g in first],
            [matrix(g.w_hh, units) for g in first],
            new,
            h,
        )
    else:
        xs = [brought(g, g.b_ih, g.b_hh) for g in gates]
        ws = [matrix(g.w_hh, units) for g in gates]
        if op == "lstm":
            out = None if parameters.w_hr is None else matrix(parameters.w_hr)
            track = cells.lstm(xs, ws, h, c, out)
        else:
            track = cells.rnn(xs[0], ws[0], h, _FUNCTIONS[op][0])
    return Layer(op, grid, x, parameters, backwards, track)


def _started(state: Abstract) -> Gaussian | None:
    return Gaussian(*unrolled(state, 1)) if state.q.any() else None


def _constant(bias: Abstract | None) -> tuple[Array, float]:
    """E b b' by (sample, unit), and E b."""
    if bias is None:
        return np.zeros((2, 2)), 0.0
    bias = uniform(merge_dim(bias, 0))
    q = bias.q if bias.dims[0] else np.repeat(bias.q[None], 2)
    return np.broadcast_to(q, (2, 2)), bias.average_mean


# gradients ----------------------------------------------------------------------------------------


def run_back(
    layer: Layer, grads: Sequence[Abstract | None]
) -> tuple[Abstract, list[Abstract], list[Abstract]]:
    """Gradients of the input, of the parameters and of the initial state.

    Args:
        layer: the forward pass.
        grads: of all states, of the last state and of the last memory.
    """
    grid, track = layer.grid, layer.track
    steps = grid.steps
    g = np.zeros((steps, steps, 2, 2))
    if grads[0] is not None:
        g = grid.read(grads[0], backwards=layer.backwards)[0].copy()
    ends = [
        np.zeros((2, 2)) if x is None else unrolled(x, 1)[0][0, 0] for x in (*grads[1:], None, None)
    ]
    g[-1, -1] += ends[0]
    if layer.op == "lstm":
        pull = bptt.lstm_back(track, g, ends[1], layer.projection)
    elif layer.op == "gru":
        pull = bptt.gru_back(track, g)
    else:
        pull = bptt.rnn_back(track, g, _FUNCTIONS[layer.op][1])
    batch = grid.batch if isinstance(grid, Grid) else grid.sizes[0]
    units = layer.parameters.w_hh.shape[0] // GATES[layer.op]
    state = [_frame(pull.state, batch, layer.units)]
    if layer.op == "lstm":
        state.append(_frame(pull.memory, batch, units))
    return _of_input(layer, pull), _of_parameters(layer, pull), state


def _frame(q: Array, batch: int, units: int) -> Abstract:
    return frame(q, 0.0, batch, units)


def _of_input(layer: Layer, pull: bptt.Pull) -> Abstract:
    gates = layer.parameters.gates(GATES[layer.op])
    units = layer.parameters.w_hh.shape[0] // GATES[layer.op]
    ws = [matrix(g.w_ih, units) for g in gates]
    total = sum(ws[k % len(ws)].transposed(a) for k, a in enumerate(pull.inputs))
    columns = layer.parameters.w_ih.shape[1]
    zero = np.zeros(len(pull.outputs))
    return layer.grid.write(np.asarray(total), zero, columns, backwards=layer.backwards)


def _of_parameters(layer: Layer, pull: bptt.Pull) -> list[Abstract]:
    """Each in the order of `Parameters.given`: sums over times and samples, pairs included."""
    p, track = layer.parameters, layer.track
    counts = layer.grid.counts()
    x = layer.grid.read(layer.x, backwards=layer.backwards)[0]
    ones = np.ones_like(x)
    found = [
        _summed(pull.inputs, x, counts, p.w_ih.shape),
        _summed(pull.hidden, track.h.q[:-1, :-1], counts, p.w_hh.shape),
    ]
    if p.b_ih is not None and p.b_hh is not None:
        found.append(_summed(pull.inputs, ones, counts, p.b_ih.shape))
        found.append(_summed(pull.hidden, ones, counts, p.b_hh.shape))
    if p.w_hr is not None:
        found.append(_summed([pull.outputs], track.extra["raw"].q[1:, 1:], counts, p.w_hr.shape))
    return found


def _summed(gates: Sequence[Array], y: Array, counts: Array, shape: tuple[int, ...]) -> Abstract:
    """E over rows of all gates of sum a y: the same row, or two rows of one gate."""
    n = len(gates)
    units = shape[0] // n
    tables = np.mean([np.einsum("tsb,tsbr,tsbc->rc", counts, a, y) for a in gates], axis=0)
    if shape[0] > 1:
        tables[1] *= (units - 1) / (shape[0] - 1)
    if len(shape) == 1:
        tables = tables[:, 0]
    dims = tuple(map(strata.whole, shape))
    for axis in reversed(range(len(shape))):
        if not dims[axis]:
            tables = tables.take(0, axis)
    return Abstract(dims, np.zeros((1,) * tables.ndim), tables)
