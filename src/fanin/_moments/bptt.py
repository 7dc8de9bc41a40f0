"""Gradients of recurrent layers over time: the cells' recursions backwards, in second moments.

Gradients are independent of the activations that they meet, as everywhere; those of one unit at two
times are not independent of each other, nor are the activations, so weights' gradients add up
coherently over time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .cells import (
    Track,
    Weights,
    accumulated,
    sigmoid,
    sigmoid_slope,
    tanh_slope,
)  # fmt: skip
from .strata import Array
from .timeline import Function


@dataclass(eq=False)
class Pull:
    """Gradients of one layer in one direction, over pairs of steps.

    Args:
        inputs: of the pre-activations, a table a gate: what W x brings to them.
        hidden: the same for what U h brings to them.
        outputs: of the state that is passed on, from all of its readers.
        state: of the initial state, by class of sample and unit.
        memory: of an LSTM's initial memory.
    """

    inputs: list[Array]
    hidden: list[Array]
    outputs: Array
    state: Array
    memory: Array = field(default_factory=lambda: np.zeros((2, 2)))


def _later(table: Array) -> Array:
    """The table one step later, zero at the end."""
    out = np.zeros_like(table)
    out[:-1, :-1] = table[1:, 1:]
    return out


def _next(means: Array) -> Array:
    return np.append(means[1:], 0.0)


def _both(table: Array, t: int, row: Array) -> None:
    """Write times (t, t..) and their mirror image."""
    table[t, t:] = row
    table[t:, t] = row


def _from_later(table: Array, t: int) -> Array:
    """Entries (t + 1, s + 1) for s = t.., zero beyond the end."""
    row = table[t + 1 :, t + 1 :][0] if t + 1 < len(table) else table[:0, 0]
    return np.concatenate([row, np.zeros((1, 2, 2))])


def rnn_back(track: Track, g: Array, f_slope: Function) -> Pull:
    """d_t = g_t + U^T a_(t+1), a_t = d_t f'."""
    steps, (w,) = len(g), track.weights
    slopes = track.inputs[0].function(f_slope)
    d, a = np.zeros_like(g), np.zeros_like(g)
    for t in range(steps - 1, -1, -1):
        _both(d, t, g[t, t:] + w.transposed(_from_later(a, t)))
        _both(a, t, d[t, t:] * slopes[t, t:])
    return Pull([a], [a], d, w.transposed(a[0, 0]))


def _suffix(gains: Array, keeps: Array) -> Array:
    """y_s = gains_s + keeps_s y_(s+1), zero beyond the end."""
    kept = np.append(1.0, keeps[:-1][::-1])
    return accumulated(np.zeros_like(gains[:1]), gains[::-1], kept)[1:][::-1]


class _LSTMTables:
    """Products over pairs of steps of what an LSTM's gradients meet."""

    def __init__(self, track: Track) -> None:
        a, c = track.inputs, track.extra["memory"]
        i, f, g, o = (a[k % len(a)] for k in range(4))
        on = {id(x): (x.function(sigmoid), x.function(sigmoid_slope)) for x in (i, f, o)}
        news, news_slope = g.function(np.tanh), g.function(tanh_slope)
        squashed, flattened = c.function(np.tanh)[1:, 1:], c.function(tanh_slope)[1:, 1:]
        self.forget = on[id(f)][0]
        self.forget_mean = f.response(sigmoid).mean
        self.leak = on[id(o)][0] * flattened
        self.leak_mean = o.response(sigmoid).mean * c.response(tanh_slope).mean[1:]
        self.gates = [
            news * on[id(i)][1],
            c.q[:-1, :-1] * on[id(f)][1],
            on[id(i)][0] * news_slope,
            squashed * on[id(o)][1],
        ]


def lstm_back(track: Track, g: Array, of_memory: Array, out: Weights | None) -> Pull:
    """The memory's gradient is e_t + f_(t+1) times that of the next, e_t = d_t o (1 - tanh(c)^2).

    Args:
        track: the forward pass.
        g: of the output, over pairs of steps.
        of_memory: of the last memory, by class of sample and unit.
        out: the projection.
    """
    steps, tables = len(g), _LSTMTables(track)
    keeps, leaks = _next(tables.forget_mean), tables.leak_mean
    own, d, c, cross = (np.zeros_like(g) for _ in range(4))  # cross: E d_t c_s
    a = [np.zeros_like(g) for _ in range(4)]
    rows = [track.weights[k % len(track.weights)] for k in range(4)]
    forget, nothing = _later(tables.forget), np.zeros((1, 2, 2))
    for t in range(steps - 1, -1, -1):
        back = sum(w.transposed(_from_later(x, t)) for w, x in zip(rows, a, strict=True))
        _both(own, t, g[t, t:] + back)
        _both(d, t, own[t, t:] if out is None else out.transposed(own[t, t:]))
        cross[t, t:] = _suffix(d[t, t:] * leaks[t:, None, None], keeps[t:])
        last = t + 1 == steps
        before = np.zeros_like(d[t:, t]) if last else cross[t:, t + 1]
        cross[t + 1 :, t] = d[t + 1 :, t] * leaks[t] + keeps[t] * before[1:]
        after = np.concatenate([cross[t, t + 1 :], nothing])
        row = tables.leak[t, t:] * d[t, t:] + forget[t, t:] * _from_later(c, t)
        row = (
            row
            + leaks[t] * keeps[t:, None, None] * after
            + leaks[t:, None, None] * keeps[t] * before
        )
        _both(c, t, row + of_memory if last else row)
        for k, met in enumerate(tables.gates):
            _both(a[k], t, (d if k == 3 else c)[t, t:] * met[t, t:])
    state = sum(w.transposed(x[0, 0]) for w, x in zip(rows, a, strict=True))
    return Pull(a, a, own, np.asarray(state), tables.forget[0, 0] * c[0, 0])


def gru_back(track: Track, g: Array) -> Pull:
    """d_t = g_t + z_(t+1) d_(t+1) + what all three gates at t + 1 pass on."""
    steps, a, h = len(g), track.inputs, track.h
    new, within = track.extra["new"], track.extra["within"]
    zz, late = a[-1].function(sigmoid), a[-1].response(sigmoid).mean
    early = 1.0 - late[:, None, None, None] - late[None, :, None, None] + zz
    news, rr = new.function(np.tanh), a[0].function(sigmoid)
    assert track.shared is not None
    shared = track.shared[:-1]
    gap = h.q[:-1, :-1] + news - shared - shared.swapaxes(0, 1)
    met = {
        "new": early * new.function(tanh_slope),
        "reset": within.q * a[0].function(sigmoid_slope),
        "update": gap * a[-1].function(sigmoid_slope),
    }
    keeps, onward = _next(late), _later(zz)
    alone = np.stack([_suffix(row, keeps) for row in g])  # E g_t d_s
    d = np.zeros_like(g)
    reset, update, candidate, inner = (np.zeros_like(g) for _ in range(4))
    w_reset, w_update, w_new = track.weights[0], track.weights[-2], track.weights[-1]
    for t in range(steps - 1, -1, -1):
        row = g[t, t:] + onward[t, t:] * _from_later(d, t)
        for w, x in ((w_reset, reset), (w_update, update), (w_new, inner)):
            row = row + w.transposed(_from_later(x, t))
        if t + 1 < steps:
            after = np.concatenate([alone[t, t + 1 :], np.zeros((1, 2, 2))])
            row = row + keeps[t:, None, None] * after + keeps[t] * alone[t:, t + 1]
        _both(d, t, row)
        _both(candidate, t, row * met["new"][t, t:])
        _both(inner, t, candidate[t, t:] * rr[t, t:])
        _both(reset, t, candidate[t, t:] * met["reset"][t, t:])
        _both(update, t, row * met["update"][t, t:])
    state = zz[0, 0] * d[0, 0]
    for w, x in ((w_reset, reset), (w_update, update), (w_new, inner)):
        state = state + w.transposed(x[0, 0])
    return Pull([reset, update, candidate], [reset, update, inner], d, state)
