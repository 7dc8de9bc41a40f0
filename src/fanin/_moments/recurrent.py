"""Recurrent ops as torch runs them: several layers, two directions, packed sequences, single cells.

Hidden states at up to 48 steps are followed (`timeline`), later ones repeat the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arithmetic import kept
from .domain import Abstract, added, concatenated, cut, multiplied, permuted
from .notes import note_of
from .recurrence import GATES, Layer, Parameters, run, run_back
from .registry import backward, forward
from .timeline import Grid, Ragged


@dataclass(frozen=True, eq=False)
class Recurrence:
    """What a recurrent op's first output remembers: its layers, directions of one after another."""

    layers: list[Layer]


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
        sizes = given["batch_sizes"].known
        if sizes is None:
            raise NotImplementedError("packed sequences of unknown lengths are sampled")
        return given["data"], Ragged(tuple(sizes.reshape(-1).tolist()))
    x = given["x"].plain()
    if given.get("batch_first"):
        x = permuted(x, (1, 0, 2))
    return x, Grid(*x.shape[:2])


def _joined(parts: list[Abstract]) -> Abstract:
    return parts[0] if len(parts) == 1 else concatenated(parts, len(parts[0].dims) - 1)


@forward(*GATES)
def recurrent(**given: Any) -> list[Abstract]:
    """All states, the last ones and, of an LSTM, the last memories."""
    layers = _layers(given)
    last = layers[-2:] if given["bidirectional"] else layers[-1:]
    out = _joined([layer.output for layer in last])
    if given.get("batch_first"):
        out = permuted(out, (1, 0, 2))
    out.note = (Recurrence(layers),)
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
    if flowing is not None and given.get("batch_first"):
        flowing = permuted(flowing, (1, 0, 2))
    params: list[list[Abstract]] = []
    states: list[list[Abstract]] = []
    for k in range(given["num_layers"] - 1, -1, -1):
        below: list[Abstract] = []
        for d in range(directions - 1, -1, -1):
            i = k * directions + d
            layer = layers[i]
            own = (
                None
                if flowing is None
                else cut(flowing, len(flowing.dims) - 1, d * layer.units, (d + 1) * layer.units)
            )
            ends = [None if g is None else cut(g, 0, i, i + 1) for g in grads[1:]]
            gx, gp, gs = run_back(layer, [own, *ends])
            below.append(gx)
            params.insert(0, gp)
            states.insert(0, gs)
        flowing = below[0] if len(below) == 1 else added(below[0], below[1])
        if given.get("train") and given.get("dropout") and k > 0:
            flowing = multiplied(
                flowing, kept(flowing.shape, float(given["dropout"]), len(flowing.dims))
            )
    assert flowing is not None
    if given.get("batch_first"):
        flowing = permuted(flowing, (1, 0, 2))
    hx = [x[0] if len(x) == 1 else concatenated(x, 0) for x in map(list, zip(*states, strict=True))]
    return {
        "data" if "data" in given else "x": flowing,
        "params": [g for own in params for g in own],
        "hx": hx if given["op"] == "lstm" else hx[0],
    }


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
