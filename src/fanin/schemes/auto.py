"""`auto`: chosen from what the model is made of, or for one objective that you name.

`auto` takes `auto:isometry` for a plain stack and `auto:forward` for anything that rescales its
signal by itself. What the objectives ask of every product with weights:

- ``auto:forward``: an output of second moment 1 (He et al. 2015, eq. 10).
- ``auto:backward``: a gradient that is neither larger nor smaller at its input than behind the
  nonlinearity after it (He et al. 2015, eq. 14), through any graph.
- ``auto:edge_of_chaos``: the second moment q at which V(q) = q and chi(q) = 1 (Schoenholz et al. 2017).
- ``auto:isometry``: that, with orthogonal matrices, so that all singular values of the
  input-output Jacobian stay near 1 (Pennington et al. 2017; Xiao et al. 2018).

Residual branches, attention logits and heads are scaled alike in all of them.
"""

from __future__ import annotations

from math import prod, sqrt

from .._errors import InvalidValueError
from .._facts import FREE_ROLE, WEIGHT_ROLES, ModelFacts, ParamInfo
from .._gains import gain
from .._recipes import (
    VECTORS,
    Choice,
    Scheme,
    always,
    embeddings,
    followed_by,
    forward_gain,
    rnn_hidden,
    scaled,
    weights,
    writes_to_residual,
)
from .._recipes import orthogonal as orthogonal_matrix
from ..distributions import Constant, Kept, Normal
from ..initializers import LecunNormal, VarianceScaling
from .edge_of_chaos import critical, critical_biases, critical_gain, critical_point, isometry
from .orthogonal import is_matrix

SMALL = 512
NO_EDGE = "no edge of chaos exists; "


def choose(info: ParamInfo, facts: ModelFacts) -> Choice:
    """Edge of chaos with orthogonal matrices in a plain stack; unit-variance outputs elsewhere.

    Norms, attention and recurrences set the scale of the signal themselves, so there the weights
    only need to keep it of order one, and residual branches to add up to order one.
    """
    if plain(facts):
        try:
            return critical(info, facts)
        except InvalidValueError:
            return sturdy(info, facts, NO_EDGE)
    return sturdy(info, facts)


def plain(facts: ModelFacts) -> bool:
    """A stack of weights and nonlinearities with nothing that rescales the signal."""
    return not (facts.normalised or facts.branches or facts.recurrent)


def unit(info: ParamInfo, facts: ModelFacts, why: str = "") -> Choice:
    """Std = gain/sqrt(fan_in), divided by sqrt(branches) where it writes into the residual stream."""
    g, why = _unit_gain(info, facts, why)
    return Choice(scaled(LecunNormal(), g), why)


def sturdy(info: ParamInfo, facts: ModelFacts, why: str = "") -> Choice:
    """As `unit`, matrices with a side of at most `SMALL` orthogonal.

    One draw of so few independent elements misses its std by some percent, and its directions by
    far more.
    """
    if not is_matrix(info) or min(info.shape[0], prod(info.shape[1:])) > SMALL:
        return unit(info, facts, why)
    g, why = _unit_gain(info, facts, why)
    return Choice(orthogonal_matrix(g), f"orthogonal, {why}")


def _unit_gain(info: ParamInfo, facts: ModelFacts, why: str) -> tuple[float, str]:
    if writes_to_residual(info) and facts.branches:
        g = 1 / sqrt(facts.branches)
        return g, f"1/sqrt(fan_in), divided by sqrt({facts.branches} residual branches)"
    g = forward_gain(info.activation)
    return g, f"{why}gain {g:.4g}/sqrt(fan_in); {followed_by(info)}"


def biases(info: ParamInfo, facts: ModelFacts) -> Choice | None:
    """The edge of chaos's biases in a plain stack."""
    return edge_biases(info, facts) if plain(facts) else None


def edge_biases(info: ParamInfo, facts: ModelFacts) -> Choice | None:
    """The edge of chaos's biases, where it exists."""
    try:
        return critical_biases(info, facts)
    except InvalidValueError:
        return None


def bare(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """A bare parameter, by what the graph does with it; what looks designed is kept."""
    if info.role != FREE_ROLE or not info.usage:
        return None
    random = isinstance(info.present, Kept) or info.present is None
    if info.usage == "weight" and len(info.shape) > 1 and random:
        return Choice(
            always(Normal(1 / sqrt(info.shape[-2]))), "a bare parameter that multiplies the signal"
        )
    if isinstance(info.present, Constant):
        return Choice(
            always(info.present), f"a bare parameter ({info.usage}): the model's own constant"
        )
    if info.usage in {"table", "added", "unused"} and random:
        return Choice(always(Normal(0.02)), f"a bare parameter ({info.usage}): small")
    if info.present is not None:
        return Choice(
            always(info.present),
            f"a bare parameter ({info.usage}): its present values look designed",
        )
    if info.usage == "scale":
        return Choice(always(Constant(1.0)), "a bare parameter that scales the signal: 1")
    return None


def gaussian(info: ParamInfo, facts: ModelFacts) -> Choice:
    """The variance of the edge of chaos, drawn independently."""
    if info.activation is None:
        return unit(info, facts)
    try:
        g, why = critical_gain(info, info.activation, facts)
    except InvalidValueError:
        return unit(info, facts, NO_EDGE)
    return Choice(scaled(LecunNormal(), g), why)


def orthogonal(info: ParamInfo, facts: ModelFacts) -> Choice:
    """Orthogonal matrices at the edge of chaos, or of unit output where there is none."""
    try:
        return critical(info, facts)
    except InvalidValueError:
        g = forward_gain(info.activation)
        return isometry(info, facts, g, f"{NO_EDGE}gain {g:.4g}; {followed_by(info)}")


def backward(info: ParamInfo, _: ModelFacts) -> Choice:
    """Std = gain/sqrt(fan_out), the gain that of the derivative."""
    g = 1.0 if info.activation is None else gain(info.activation, criterion="backward")
    made = VarianceScaling(1.0, "fan_out", "normal")
    return Choice(scaled(made, g), f"gain {g:.4g}/sqrt(fan_out); {followed_by(info)}")


def targets(facts: ModelFacts) -> dict[str, float]:
    """Second moments of the weights' outputs: in a plain stack those of the edge of chaos."""
    return critical_targets(facts) if plain(facts) else unit_targets(facts)


def critical_targets(facts: ModelFacts) -> dict[str, float]:
    """The second moment at which each nonlinearity is critical, by the weight before it."""
    found = {}
    for info in facts.params:
        if info.role in WEIGHT_ROLES and info.activation is not None:
            try:
                q = critical_point(info.activation, facts.layers)[0]
            except InvalidValueError:
                continue
            found[info.name] = q / info.factor**2
    return {**unit_targets(facts), **found}


def unit_targets(facts: ModelFacts) -> dict[str, float]:
    """Every nonlinearity's argument has second moment 1, so have outputs that none follows."""
    return {p.name: p.factor**-2 for p in facts.params if p.factor != 1.0}


SCHEME = Scheme(
    "auto",
    "chosen from the model: edge of chaos and orthogonal for plain stacks, unit variance elsewhere",
    "Schoenholz et al. 2017; Pennington et al. 2017; Xiao et al. 2018; He et al. 2015; Radford et al. 2019",
    (rnn_hidden, weights(choose), embeddings(), biases, *VECTORS, bare),
    targets,
)
FORWARD = Scheme(
    "auto:forward",
    "solved: every product with weights has an output of second moment 1",
    "He et al. 2015, eq. 10",
    (rnn_hidden, weights(unit), embeddings(), *VECTORS, bare),
    unit_targets,
)
BACKWARD = Scheme(
    "auto:backward",
    "solved: the gradient keeps its second moment from product to product",
    "He et al. 2015, eq. 14",
    (rnn_hidden, weights(backward), embeddings(), *VECTORS, bare),
    unit_targets,
    "backward",
)
EDGE_OF_CHAOS = Scheme(
    "auto:edge_of_chaos",
    "solved: every nonlinearity at its critical second moment, weights independent",
    "Poole et al. 2016; Schoenholz et al. 2017, eq. 5",
    (rnn_hidden, weights(gaussian), embeddings(), edge_biases, *VECTORS, bare),
    critical_targets,
)
ISOMETRY = Scheme(
    "auto:isometry",
    "solved: every nonlinearity at its critical second moment, weights orthogonal",
    "Saxe et al. 2014; Pennington et al. 2017; Xiao et al. 2018",
    (rnn_hidden, weights(orthogonal), embeddings(), edge_biases, *VECTORS, bare),
    critical_targets,
)
