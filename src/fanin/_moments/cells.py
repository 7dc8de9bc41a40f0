"""What recurrent cells do to moments over time, forward.

Pre-activations are Gaussian: sums over many units with weights that are the same at all times. Rows
of different gates are different weights, so gates are independent of each other and of the state that
they meet; one gate's values at two times are not, and their products are taken by Mehler's series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .strata import Array
from .timeline import Function, Response, mirrored, powers


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z))."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


def sigmoid_slope(z: Array) -> Array:
    """Its derivative."""
    s = sigmoid(z)
    return s * (1.0 - s)


def tanh_slope(z: Array) -> Array:
    """1 - tanh^2."""
    return np.asarray(1.0 - np.tanh(z) ** 2)


def rectified(z: Array) -> Array:
    """max(z, 0)."""
    return np.maximum(z, 0.0)


def step(z: Array) -> Array:
    """Its derivative."""
    return np.asarray((z > 0).astype(float))


@dataclass(frozen=True, eq=False)
class Weights:
    """A recurrent matrix: E w w' by (same or other row, same or other column), E w, its size."""

    q: Array
    mean: float
    rows: int
    columns: int

    @cached_property
    def forth(self) -> Array:
        """What E h h' of the same and of two units counts for in E (W h) (W h)' of the same and of two."""
        n = self.columns
        return np.array([n * self.q[:, 0], n * (n - 1) * self.q[:, 1]])

    @cached_property
    def back(self) -> Array:
        """The same for W^T."""
        n = self.rows
        return np.array([n * self.q[0], n * (n - 1) * self.q[1]])

    def applied(self, q: Array) -> Array:
        """E (W h)_t (W h)_s from E h_t h_s; the last axis is the unit's class."""
        return np.asarray(q @ self.forth)

    def transposed(self, q: Array) -> Array:
        """E (W^T d)_t (W^T d)_s from E d_t d_s."""
        return np.asarray(q @ self.back)


@dataclass(eq=False)
class Gaussian:
    """A sequence of pre-activations or states.

    Args:
        q: E a_t a_s, (times, times, same or other sample, same or other unit).
        mean: E a_t.
    """

    q: Array
    mean: Array

    @classmethod
    def blank(cls, steps: int) -> Gaussian:
        """Zeros."""
        return cls(np.zeros((steps, steps, 2, 2)), np.zeros(steps))

    def __post_init__(self) -> None:
        steps = np.arange(len(self.mean))
        self.std = np.sqrt(np.maximum(self.q[steps, steps, 0, 0] - self.mean**2, 0.0))

    def put(self, t: int, row: Array, mean: float) -> None:
        """Time t, against times 0..t."""
        mirrored(self.q, t, row)
        self.mean[t] = mean
        self.std[t] = math.sqrt(max(float(row[t, 0, 0]) - mean * mean, 0.0))

    def see(self, t: int, *responses: Response) -> Array:
        """Powers of the correlations of time t with 0..t; the responses learn its distribution."""
        mean, std = float(self.mean[t]), float(self.std[t])
        for response in responses:
            response.see(t, mean, std)
        return powers(self.q[t, : t + 1], mean * self.mean[: t + 1], std * self.std[: t + 1])

    @cached_property
    def powers(self) -> Array:
        """Of the correlations of all pairs of times, once all are there."""
        outer, scale = (
            np.multiply.outer(self.mean, self.mean),
            np.multiply.outer(self.std, self.std),
        )
        return powers(self.q, outer, scale)

    def response(self, f: Function) -> Response:
        """E f(a_t) f(a_s) at all times."""
        return Response(f, 0).see_all(self.mean, self.std)

    def function(self, f: Function) -> Array:
        """The table of E f(a_t) f(a_s)."""
        return self.response(f).table(self.powers)


@dataclass(eq=False)
class Track:
    """One layer in one direction, over times 0 (the initial state) to n.

    Args:
        h: the state that is passed on.
        inputs: pre-activations, without the initial time: one entry for all gates that are alike.
        extra: what the gradient needs beside them.
        weights: recurrent matrices, as ``inputs``; a GRU's last one is that of its new state.
        shared: of a GRU, E h_t n_s.
    """

    h: Gaussian
    inputs: list[Gaussian]
    extra: dict[str, Gaussian] = field(default_factory=dict)
    weights: list[Weights] = field(default_factory=list)
    shared: Array | None = None


def started(state: Gaussian | None, steps: int) -> Gaussian:
    """A sequence of states whose first is given; zero otherwise."""
    out = Gaussian.blank(steps + 1)
    if state is not None:
        out.q[0, 0], out.mean[0] = state.q[0, 0], state.mean[0]
    return out


class Leaky:
    """y_(t+1) = f_t y_t + w_t n_t: a gated memory.

    E y y' expands to E[ff'] E[yy'] + E[fw'] E[y n'] + E[wf'] E[n y'] + E[ww'] E[nn'] at the times
    before; what the memory shares with n at another time follows
    M(t+1, s) = E f_t M(t, s) + E w_t E[n_t n_s].
    """

    def __init__(self, state: Gaussian | None, steps: int) -> None:
        self.y = started(state, steps)
        self.shared = np.zeros((steps + 1, steps, 2, 2))
        self.fed = np.zeros(steps)
        self.news = np.zeros((steps, steps, 2, 2))
        self.decay = np.ones((steps + 1, 1, 1))

    def move(
        self,
        t: int,
        tables: tuple[Array, Array, Array, Array],
        news: Array,
        means: tuple[float, float, float],
    ) -> None:
        """One step.

        Args:
            t: the step.
            tables: E[f_t f_s], E[f_t w_s], E[w_t f_s], E[w_t w_s] for s = 0..t.
            news: E[n_t n_s].
            means: E f_t, E w_t, E n_t.
        """
        ff, fw, wf, ww = tables
        y, f, w = self.y, means[0], means[1]
        self.fed[t] = w
        self.decay[t + 1] = self.decay[t] * max(f, 1e-5)
        mirrored(self.news, t, news)
        self.shared[: t + 1, t] = self._column(t, y.mean[0] * means[2])
        row = ff * y.q[t, : t + 1] + ww * news
        row += fw * self.shared[t, : t + 1] + wf * self.shared[: t + 1, t]
        first = f * y.q[t, :1] + w * means[2] * y.mean[0]
        self.shared[t + 1, : t + 1] = f * self.shared[t, : t + 1] + w * news
        y.put(t + 1, np.concatenate([first, row]), float(f * y.mean[t] + w * means[2]))

    def _column(self, t: int, start: float) -> Array:
        """M(k, t) for k = 0..t: M(k + 1, t) = f_k M(k, t) + w_k E[n_k n_t], as one cumulative sum."""
        out = np.full((t + 1, 2, 2), start)
        gains = self.fed[:t, None, None] * self.news[:t, t] / self.decay[1 : t + 1]
        out[1:] += gains.cumsum(axis=0)
        out *= self.decay[: t + 1]
        return out


def _row(x: Gaussian, w: Weights, h: Gaussian, t: int) -> tuple[Array, float]:
    """Pre-activation t against 0..t: what the input brings, and W h of the time before."""
    row = x.q[t, : t + 1] + w.applied(h.q[t, : t + 1])
    own = w.columns * w.mean * h.mean
    if w.mean:
        row = row + (x.mean[t] * own[: t + 1] + own[t] * x.mean[: t + 1])[:, None, None]
    return row, float(x.mean[t] + own[t])


def _start_row(state: Gaussian, mean: float) -> Array:
    """E y_t y_0 of a y that the initial state reaches through fresh weights alone."""
    return np.full((1, 2, 2), state.mean[0] * mean)


def rnn(x: Gaussian, w: Weights, state: Gaussian | None, f: Function) -> Track:
    """h_t = f(W x_t + U h_(t-1) + b)."""
    steps = len(x.mean)
    h, a, curve = started(state, steps), Gaussian.blank(steps), Response(f, steps)
    for t in range(steps):
        a.put(t, *_row(x, w, h, t))
        values = curve.row(t, a.see(t, curve))
        mean = float(curve.mean[t])
        h.put(t + 1, np.concatenate([_start_row(h, mean), values]), mean)
    return Track(h, [a], weights=[w])


class Gates:
    """Sigmoid gates, one for all that are alike.

    Args:
        xs: what the input brings to each.
        ws: their recurrent matrices.
    """

    def __init__(self, xs: Sequence[Gaussian], ws: Sequence[Weights]) -> None:
        steps = len(xs[0].mean)
        self.xs, self.ws = xs, ws
        self.a = [Gaussian.blank(steps) for _ in xs]
        self.curves = [Response(sigmoid, steps) for _ in xs]
        self.rows: list[Array] = []
        self.seen: list[Array] = []

    def move(self, h: Gaussian, t: int, also: dict[int, Response]) -> None:
        """Pre-activations of time t; ``also`` are further functions of some gate's."""
        self.rows, self.seen = [], []
        for k, (x, w) in enumerate(zip(self.xs, self.ws, strict=True)):
            self.a[k].put(t, *_row(x, w, h, t))
            r = self.a[k].see(t, self.curves[k], *([also[k]] if k in also else []))
            self.seen.append(r)
            self.rows.append(self.curves[k].row(t, r))

    def row(self, k: int) -> Array:
        """E gate_t gate_s for s = 0..t."""
        return self.rows[k if len(self.rows) > 1 else 0]

    def mean(self, k: int) -> Array:
        """E gate at all times."""
        return self.curves[k if len(self.curves) > 1 else 0].mean


def lstm(
    xs: Sequence[Gaussian],
    ws: Sequence[Weights],
    state: Gaussian | None,
    memory: Gaussian | None,
    out: Weights | None,
) -> Track:
    """c_t = f c_(t-1) + i g, h_t = o tanh(c_t), perhaps projected.

    Args:
        xs: what the input brings to i, f, g, o; one for all where they are alike.
        ws: recurrent matrices.
        state: h at the start.
        memory: c at the start.
        out: the projection of the state.
    """
    steps = len(xs[0].mean)
    gates, h, raw = Gates(xs, ws), started(state, steps), Gaussian.blank(steps + 1)
    cell, news, squash = (
        Leaky(memory, steps),
        Response(np.tanh, steps),
        Response(np.tanh, steps + 1),
    )
    of_news = 2 if len(xs) > 1 else 0
    cell.y.see(0, squash)
    for t in range(steps):
        gates.move(h, t, {of_news: news})
        i, f = gates.mean(0), gates.mean(1)
        fw, wf = f[t] * i[: t + 1, None, None], i[t] * f[: t + 1, None, None]
        means = float(f[t]), float(i[t]), float(news.mean[t])
        cell.move(t, (gates.row(1), fw, wf, gates.row(0)), news.row(t, gates.seen[of_news]), means)
        own = gates.row(3) * squash.row(t + 1, cell.y.see(t + 1, squash))[1:]
        mean = float(gates.mean(3)[t] * squash.mean[t + 1])
        raw.put(t + 1, np.concatenate([np.zeros((1, 2, 2)), own]), mean)
        row = raw.q[t + 1, 1 : t + 2] if out is None else out.applied(raw.q[t + 1, 1 : t + 2])
        mean = mean if out is None else out.columns * out.mean * mean
        h.put(t + 1, np.concatenate([_start_row(h, mean), row]), mean)
    return Track(h, gates.a, {"memory": cell.y, "raw": raw}, list(ws))


def gru(
    xs: Sequence[Gaussian],
    ws: Sequence[Weights],
    new: tuple[Gaussian, Weights, Array, float],
    state: Gaussian | None,
) -> Track:
    """h_t = (1 - z) n + z h_(t-1), n = tanh(W x + r (U h + b)).

    Args:
        xs: what the input brings to r and z; one for both where they are alike.
        ws: recurrent matrices.
        new: for n: what the input brings, the matrix, E b b' by unit and E b.
        state: h at the start.
    """
    steps = len(xs[0].mean)
    x, w, bias, bias_mean = new
    gates, cell, curve = Gates(xs, ws), Leaky(state, steps), Response(np.tanh, steps)
    h, a, within = cell.y, Gaussian.blank(steps), Gaussian.blank(steps)
    constant = Gaussian(np.broadcast_to(bias, (steps, steps, 2, 2)), np.full(steps, bias_mean))
    for t in range(steps):
        gates.move(h, t, {})
        within.put(t, *_row(constant, w, h, t))
        r, z = gates.mean(0), gates.mean(1)
        mean = float(x.mean[t] + r[t] * within.mean[t])
        row = x.q[t, : t + 1] + gates.row(0) * within.q[t, : t + 1]
        pushed = r[: t + 1] * within.mean[: t + 1]
        row = row + (x.mean[t] * pushed + pushed[t] * x.mean[: t + 1])[:, None, None]
        a.put(t, row, mean)
        zz, news = gates.row(1), curve.row(t, a.see(t, curve))
        early, late = z[: t + 1, None, None], z[t]
        tables = zz, late - zz, early - zz, 1.0 - late - early + zz
        cell.move(t, tables, news, (float(late), 1.0 - float(late), float(curve.mean[t])))
    return Track(h, gates.a, {"new": a, "within": within}, [*ws, w], cell.shared)
