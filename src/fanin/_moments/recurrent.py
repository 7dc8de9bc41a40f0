"""Recurrent ops as torch runs them: several layers, two directions, packed sequences, single cells.

Hidden states at up to 48 steps are followed (`timeline`), later ones repeat the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import kept
from .domain import Abstract, added, concatenated, cut, measured, multiplied, permuted
from .notes import note_of
from .recurrence import GATES, Layer, Parameters, run, run_back
from .registry import backward, forward
from .timeline import Grid, Ragged, Timed, beside, unrolled


@dataclass(frozen=True, eq=False)
class Recurrence:
    """What a recurrent op's first output remembers: its layers, directions of one after another."""

    layers: list[Layer]


def states(out: Abstract, layer: int, directions: int) -> list[Abstract]:
    """The states of one layer, one tensor a direction, behind a recurrent op's first output."""
    note = note_of(out, Recurrence)
    if note is None:
        return []
    return [x.output for x in note.layers[layer * directions : (layer + 1) * directions]]


def _layers(given: dict[str, Any]) -> list[Layer]:
    """All layers, first to last."""
    op, params = given["op"], list(given["params"])
    directions = 2 if given["bidirectional"] else 1
    each = len(params) // (given["num_layers"] * directions)
    x, grid = _input(given)
    states = given["hx"] if op == "lstm" else [given["hx"]]
    found: list[Layer] = []
    for k in range(given["num_layers"]):
        made = []
        for d in range(directions):
            i = k * directions + d
            own = params[i * each : (i + 1) * each]
            state = [cut(s, 0, i, i + 1) for s in states]
            made.append(
                run(
                    op,
                    grid,
                    x,
                    _parameters(own, bool(given["has_biases"])),
                    state,
                    backwards=d == 1,
                )
            )
        found += made
        x = _joined([layer.output for layer in made])
        if given.get("train") and given.get("dropout") and k + 1 < given["num_layers"]:
            x = multiplied(x, kept(x.shape, float(given["dropout"]), len(x.dims)))
    return found


def _parameters(own: list[Abstract], biases: bool) -> Parameters:
    if biases:
        return Parameters(*own)
    return Parameters(own[0], own[1], w_hr=own[2] if len(own) > 2 else None)


def _input(given: dict[str, Any]) -> tuple[Abstract, Grid | Ragged]:
    """The input with time first, and the lengths of its sequences."""
    if "data" in given:
        return given["data"], _lengths(given["batch_sizes"])
    x = given["x"].plain()
    if given.get("batch_first"):
        x = permuted(x, (1, 0, 2))
    return x, Grid(*x.shape[:2])


def _joined(parts: list[Abstract]) -> Abstract:
    """Directions side by side; units of two directions are independent but for their means."""
    if len(parts) == 1:
        return parts[0]
    out = concatenated(parts, len(parts[0].dims) - 1)
    timed = [note_of(x, Timed) for x in parts]
    if all(timed):
        out.note = (beside([t for t in timed if t is not None], parts[0].shape[-1]),)
    return out


def _of_direction(grad: Abstract, d: int, units: int) -> Abstract:
    """The gradient of one direction's states; by time they are known for both as one."""
    own = cut(grad, len(grad.dims) - 1, d * units, (d + 1) * units)
    timed = note_of(grad, Timed)
    return own if timed is None else own.with_(note=(timed,))


def _together(a: Abstract, b: Abstract) -> Abstract:
    out, (s, t) = added(a, b), (note_of(a, Timed), note_of(b, Timed))
    if s is not None and t is not None:
        out.note = (Timed(s.q + t.q, s.mean + t.mean),)
    return out


@forward(*GATES)
def recurrent(**given: Any) -> list[Abstract]:
    """All states, the last ones and, of an LSTM, the last memories."""
    layers = _layers(given)
    last = layers[-2:] if given["bidirectional"] else layers[-1:]
    out = _joined([layer.output for layer in last])
    if given.get("batch_first"):
        out = permuted(out, (1, 0, 2))
    timed = note_of(out, Timed) if "data" in given else None
    out.note = (Recurrence(layers), *(() if timed is None else (timed,)))
    ends = [[layer.last for layer in layers]]
    if given["op"] == "lstm":
        ends.append([layer.memory for layer in layers])
    return [out, *(x[0] if len(x) == 1 else concatenated(x, 0) for x in ends)]


@backward(*GATES)
def recurrent_backward(**given: Any) -> dict[str, Any]:
    """From the last layer to the first, in each from the last time to the first."""
    note = note_of(given["outputs"][0], Recurrence)
    layers = note.layers if note is not None else _layers(given)
    directions = 2 if given["bidirectional"] else 1
    grads = list(given["grads"])
    flowing = grads[0]
    if flowing is not None and "data" not in given:
        flowing = flowing.plain()
    if flowing is not None and given.get("batch_first"):
        flowing = permuted(flowing, (1, 0, 2))
    params: list[list[Abstract]] = []
    states: list[list[Abstract]] = []
    for k in range(given["num_layers"] - 1, -1, -1):
        below: list[Abstract] = []
        for d in range(directions - 1, -1, -1):
            i = k * directions + d
            layer = layers[i]
            own = None if flowing is None else _of_direction(flowing, d, layer.units)
            ends = [None if g is None else cut(g, 0, i, i + 1) for g in grads[1:]]
            gx, gp, gs = run_back(layer, [own, *ends])
            below.append(gx)
            params.insert(0, gp)
            states.insert(0, gs)
        flowing = below[0] if len(below) == 1 else _together(below[0], below[1])
        if given.get("train") and given.get("dropout") and k > 0:
            flowing = multiplied(
                flowing, kept(flowing.shape, float(given["dropout"]), len(flowing.dims))
            )
    assert flowing is not None
    if "data" not in given:
        flowing = flowing.plain()
    if given.get("batch_first"):
        flowing = permuted(flowing, (1, 0, 2))
    hx = [x[0] if len(x) == 1 else concatenated(x, 0) for x in map(list, zip(*states, strict=True))]
    return {
        "data" if "data" in given else "x": flowing,
        "params": [g for own in params for g in own],
        "hx": hx if given["op"] == "lstm" else hx[0],
    }


# packed sequences ---------------------------------------------------------------------------------


def _ordered(x: Abstract, batch_first: bool) -> Abstract:
    return permuted(x, (1, 0, 2)) if batch_first else x


def _lengths(batch_sizes: Abstract) -> Ragged:
    if batch_sizes.known is None:
        raise NotImplementedError("packed sequences of unknown lengths are sampled")
    return Ragged(tuple(batch_sizes.known.reshape(-1).tolist()))


def _packed(x: Abstract, batch_first: bool, grid: Ragged) -> Abstract:
    """Places of a padded tensor, one after the other; what lies beyond 2 axes is one of units."""
    x = _ordered(x.plain(), batch_first)
    q, mean = unrolled(x, grid.steps)
    return grid.write(q, mean, x.shape[2], backwards=False).with_(noise=x.noise)


def _padded(x: Abstract, batch_first: bool, grid: Ragged, length: int, value: float) -> Abstract:
    q, mean = grid.padded(*grid.read(x), length, value)
    out = Grid(length, grid.sizes[0]).write(q, mean, x.shape[1], backwards=False)
    return _ordered(out.with_(noise=x.noise), batch_first)


@forward("_pack_padded_sequence")
def pack(x: Abstract, lengths: Abstract, batch_first: bool) -> list[Abstract]:
    """Sequences of known lengths, time after time: pairs by time and sample, where both still run."""
    if lengths.known is None:
        raise NotImplementedError("sequences of unknown lengths are sampled")
    ends = np.asarray(lengths.known).reshape(-1)
    sizes = (ends[:, None] > np.arange(ends.max())).sum(axis=0)
    return [_packed(x, batch_first, Ragged(tuple(sizes.tolist()))), measured(sizes)]


@backward("_pack_padded_sequence")
def pack_backward(
    grad: Abstract, x: Abstract, batch_first: bool, outputs: Sequence[Abstract]
) -> dict[str, Abstract]:
    """The gradient where a sequence runs, 0 beyond its end."""
    length = x.shape[1 if batch_first else 0]
    return {"x": _padded(grad, batch_first, _lengths(outputs[1]), length, 0.0)}


@forward("_pad_packed_sequence")
def pad_packed(
    data: Abstract,
    batch_sizes: Abstract,
    batch_first: bool,
    padding_value: float,
    shapes: Sequence[Sequence[int]],
) -> list[Abstract]:
    """Sequences side by side again, with the padding value beyond their ends."""
    grid, length = _lengths(batch_sizes), int(shapes[0][1 if batch_first else 0])
    padded = _padded(data, batch_first, grid, length, float(padding_value))
    ends = [sum(n > i for n in grid.sizes) for i in range(grid.sizes[0])]
    return [padded, measured(np.array(ends))]


@backward("_pad_packed_sequence")
def pad_packed_backward(
    grad: Abstract, batch_sizes: Abstract, batch_first: bool
) -> dict[str, Abstract]:
    """The gradient where a sequence runs."""
    return {"data": _packed(grad, batch_first, _lengths(batch_sizes))}


# single cells -------------------------------------------------------------------------------------

_CELLS = {f"{op}_cell": op for op in GATES}


def _cell(given: dict[str, Any]) -> Layer:
    op, lead = _CELLS[given["op"]], ((),)
    states = given["hx"] if op == "lstm" else [given["hx"]]
    x, *states = (
        Abstract(lead + y.dims, y.mean, y.q, noise=y.noise) for y in (given["x"], *states)
    )
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    parameters = Parameters(*(given.get(name) for name in names))  # type: ignore[arg-type]
    return run(op, Grid(1, x.shape[1]), x, parameters, states, backwards=False)


def _without_time(x: Abstract) -> Abstract:
    return x.with_(dims=x.dims[1:])


@forward(*_CELLS)
def cell(**given: Any) -> Abstract | list[Abstract]:
    """One step of a recurrent layer."""
    layer = _cell(given)
    h = _without_time(layer.last)
    h.noise = given["x"].noise
    return [h, _without_time(layer.memory)] if layer.op == "lstm" else h


@backward(*_CELLS)
def cell_backward(**given: Any) -> dict[str, Any]:
    """One step back."""
    layer = _cell(given)
    ends = [None if g is None else g.with_(dims=((), *g.dims), chain=None) for g in given["grads"]]
    gx, gp, gs = run_back(layer, [None, *ends])
    states = [_without_time(s) for s in gs]
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    found: dict[str, Any] = dict(zip(names, gp, strict=False))
    return {**found, "x": _without_time(gx), "hx": states if layer.op == "lstm" else states[0]}
