"""Gradients of recurrent layers over time: the cells' recursions backwards, in second moments.

Gradients are independent of the activations that they meet, as everywhere; those of one unit at two
times are not independent of each other, nor are the activations, so weights' gradients add up
coherently over time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .cells import Track, Weights, sigmoid, sigmoid_slope, tanh_slope
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


def _room(*lead: int, steps: int) -> Array:
    """A table of zeros with one step more, so that every step has a later one."""
    return np.zeros((*lead, steps + 1, steps + 1, 2, 2))


def _both(table: Array, t: int, row: Array) -> None:
    """Write times (t, t..) and their mirror image."""
    table[..., t, t:-1, :, :] = row
    table[..., t:-1, t, :, :] = row


def _next(means: Array) -> Array:
    return np.append(means[1:], 0.0)


class _Suffix:
    """y_s = gains_s + keeps_s y_(s+1), zero beyond the end, as one cumulative sum."""

    def __init__(self, keeps: Array) -> None:
        self.decay = np.cumprod(np.append(1.0, np.maximum(keeps[:-1], 1e-5)))[:, None, None]

    def __call__(self, gains: Array, start: int = 0) -> Array:
        """For s = start.. ."""
        decay = self.decay[start:]
        return np.asarray((gains * decay)[::-1].cumsum(axis=0)[::-1] / decay)


def rnn_back(track: Track, g: Array, f_slope: Function) -> Pull:
    """d_t = g_t + U^T a_(t+1), a_t = d_t f'."""
    steps, (w,) = len(g), track.weights
    slopes = track.inputs[0].function(f_slope)
    d, a = _room(steps=steps), _room(steps=steps)
    for t in range(steps - 1, -1, -1):
        row = g[t, t:] + w.transposed(a[t + 1, t + 1 :])
        _both(d, t, row)
        _both(a, t, row * slopes[t, t:])
    a = a[:-1, :-1]
    return Pull([a], [a], d[:-1, :-1], w.transposed(a[0, 0]))


class _LSTMTables:
    """Products over pairs of steps of what an LSTM's gradients meet."""

    def __init__(self, track: Track) -> None:
        a, c = track.inputs, track.extra["memory"]
        i, f, g, o = (a[k % len(a)] for k in range(4))
        on = {id(x): (x.response(sigmoid), x.function(sigmoid_slope)) for x in (i, f, o)}
        open_ = {id(x): on[id(x)][0].table(x.powers) for x in (i, f, o)}
        news, news_slope = g.function(np.tanh), g.function(tanh_slope)
        squashed, flat = c.function(np.tanh)[1:, 1:], c.response(tanh_slope)
        self.forget, self.forget_mean = open_[id(f)], on[id(f)][0].mean
        self.leak = open_[id(o)] * flat.table(c.powers)[1:, 1:]
        self.leak_mean = on[id(o)][0].mean * flat.mean[1:]
        self.gates = np.stack([
            news * on[id(i)][1],
            c.q[:-1, :-1] * on[id(f)][1],
            open_[id(i)] * news_slope,
            squashed * on[id(o)][1],
        ])  # fmt: skip


def lstm_back(track: Track, g: Array, of_memory: Array, out: Weights | None) -> Pull:
    """The memory's gradient is e_t + f_(t+1) times that of the next, e_t = d_t o (1 - tanh(c)^2).

    Args:
        track: the forward pass.
        g: of the output, over pairs of steps.
        of_memory: of the last memory, by class of sample and unit.
        out: the projection.
    """
    steps, tables = len(g), _LSTMTables(track)
    keeps, leaks = _next(tables.forget_mean)[:, None, None], tables.leak_mean[:, None, None]
    own, d, c, cross = (_room(steps=steps) for _ in range(4))  # cross: E d_t c_s
    a = _room(4, steps=steps)
    back = np.stack([track.weights[k % len(track.weights)].back for k in range(4)])[:, None]
    forget, suffix = _later(tables.forget), _Suffix(keeps[:, 0, 0])
    for t in range(steps - 1, -1, -1):
        row = g[t, t:] + (a[:, t + 1, t + 1 :] @ back).sum(axis=0)
        _both(own, t, row)
        row = row if out is None else out.transposed(row)
        _both(d, t, row)
        cross[t, t:-1] = suffix(row * leaks[t:], t)
        before = cross[t:-1, t + 1]
        cross[t + 1 : -1, t] = row[1:] * leaks[t] + keeps[t] * before[1:]
        pull = tables.leak[t, t:] * row + forget[t, t:] * c[t + 1, t + 1 :]
        pull += leaks[t] * keeps[t:] * cross[t, t + 1 :] + leaks[t:] * keeps[t] * before
        _both(c, t, pull + of_memory if t + 1 == steps else pull)
        met = tables.gates[:, t, t:] * pull
        met[3] = tables.gates[3, t, t:] * row
        _both(a, t, met)
    pulls = list(a[:, :-1, :-1])
    state = (a[:, 0, 0] @ back[:, 0]).sum(axis=0)
    return Pull(pulls, pulls, own[:-1, :-1], state, tables.forget[0, 0] * c[0, 0])


def gru_back(track: Track, g: Array) -> Pull:
    """d_t = g_t + z_(t+1) d_(t+1) + what all three gates at t + 1 pass on."""
    steps, a, h = len(g), track.inputs, track.h
    new, within = track.extra["new"], track.extra["within"]
    update, reset = a[-1].response(sigmoid), a[0].function(sigmoid)
    zz, late = update.table(a[-1].powers), update.mean
    early = 1.0 - late[:, None, None, None] - late[None, :, None, None] + zz
    news = new.function(np.tanh)
    assert track.shared is not None
    shared = track.shared[:-1]
    gap = h.q[:-1, :-1] + news - shared - shared.swapaxes(0, 1)
    candidate = early * new.function(tanh_slope)
    met = np.stack([
        candidate * within.q * a[0].function(sigmoid_slope),
        gap * a[-1].function(sigmoid_slope),
        candidate * reset,
        candidate,
    ])  # fmt: skip
    keeps, onward = _next(late), _later(zz)
    suffix = _Suffix(keeps)
    alone = _room(steps=steps)[:-1]
    alone[:, :-1] = np.stack([suffix(row) for row in g])  # E g_t d_s
    keeps = keeps[:, None, None]
    d, pulls = _room(steps=steps), _room(4, steps=steps)
    back = np.stack([track.weights[k].back for k in (0, -2, -1)])[:, None]
    for t in range(steps - 1, -1, -1):
        row = g[t, t:] + onward[t, t:] * d[t + 1, t + 1 :]
        row += (pulls[:3, t + 1, t + 1 :] @ back).sum(axis=0)
        row += keeps[t:] * alone[t, t + 1 :] + keeps[t] * alone[t:, t + 1]
        _both(d, t, row)
        _both(pulls, t, met[:, t, t:] * row)
    d, (of_reset, of_update, of_inner, of_new) = d[:-1, :-1], pulls[:, :-1, :-1]
    state = zz[0, 0] * d[0, 0] + (pulls[:3, 0, 0] @ back[:, 0]).sum(axis=0)
    return Pull([of_reset, of_update, of_new], [of_reset, of_update, of_inner], d, state)
