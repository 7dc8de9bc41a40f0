"""`auto`: chosen from what the model is made of."""

from __future__ import annotations

from math import sqrt

from .._errors import InvalidValueError
from .._facts import FREE_ROLE, WEIGHT_ROLES, ModelFacts, ParamInfo
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
from ..distributions import Constant, Kept, Normal
from ..initializers import LecunNormal
from .edge_of_chaos import critical, critical_biases, critical_point


def choose(info: ParamInfo, facts: ModelFacts) -> Choice:
    """Edge of chaos with orthogonal matrices in a plain stack; unit-variance outputs elsewhere.

    Norms, attention and recurrences set the scale of the signal themselves, so there the weights
    only need to keep it of order one, and residual branches to add up to order one.
    """
    if plain(facts):
        try:
            return critical(info, facts)
        except InvalidValueError:
            return forward(info, facts, "no edge of chaos exists; ")
    return forward(info, facts)


def plain(facts: ModelFacts) -> bool:
    """A stack of weights and nonlinearities with nothing that rescales the signal."""
    return not (facts.normalised or facts.branches or facts.recurrent)


def forward(info: ParamInfo, facts: ModelFacts, why: str = "") -> Choice:
    """Std = gain/sqrt(fan_in), divided by sqrt(branches) where it writes into the residual stream."""
    g = forward_gain(info.activation)
    why += f"gain {g:.4g}/sqrt(fan_in); {followed_by(info)}"
    if writes_to_residual(info) and facts.branches:
        g /= sqrt(facts.branches)
        why = f"1/sqrt(fan_in), divided by sqrt({facts.branches} residual branches)"
    return Choice(scaled(LecunNormal(), g), why)


def biases(info: ParamInfo, facts: ModelFacts) -> Choice | None:
    """The edge of chaos's biases in a plain stack."""
    try:
        return critical_biases(info, facts) if plain(facts) else None
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


def targets(facts: ModelFacts) -> dict[str, float]:
    """Second moments of the weights' outputs: in a plain stack those of the edge of chaos."""
    if not plain(facts):
        return {}
    found = {}
    for info in facts.params:
        if info.role in WEIGHT_ROLES and info.activation is not None:
            try:
                found[info.name] = critical_point(info.activation, facts.layers)[0]
            except InvalidValueError:
                continue
    return found


SCHEME = Scheme(
    "auto",
    "chosen from the model: edge of chaos and orthogonal for plain stacks, unit variance elsewhere",
    "Schoenholz et al. 2017; Pennington et al. 2017; Xiao et al. 2018; He et al. 2015; Radford et al. 2019",
    (rnn_hidden, weights(choose), embeddings(), biases, *VECTORS, bare),
    targets,
)
