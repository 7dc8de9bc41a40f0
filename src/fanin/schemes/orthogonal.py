"""`orthogonal`: matrices that keep every direction's length, not only the mean one."""

from __future__ import annotations

from .._facts import ModelFacts, ParamInfo
from .._recipes import (
    VECTORS,
    Choice,
    Scheme,
    embeddings,
    followed_by,
    forward_gain,
    scaled,
    weights,
)
from .._recipes import orthogonal as orthogonal_matrix
from ..initializers import LecunNormal


def choose(info: ParamInfo, _: ModelFacts) -> Choice:
    """Gain times a (semi-)orthogonal matrix; grouped or transposed kernels have none and are normal."""
    g = forward_gain(info.activation)
    if not is_matrix(info):
        return Choice(
            scaled(LecunNormal(), g), f"normal (a {info.role} is no single matrix), gain {g:.4g}"
        )
    return Choice(orthogonal_matrix(g), f"orthogonal, gain {g:.4g}; {followed_by(info)}")


def is_matrix(info: ParamInfo) -> bool:
    """Whether the weight, flattened as (dim 0, the rest), is the linear map that the layer applies."""
    return len(info.shape) == 2 or (info.role == "conv" and info.groups == 1)


SCHEME = Scheme(
    "orthogonal",
    "orthogonal, gain of the following nonlinearity",
    "Saxe, McClelland, Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear networks",
    (weights(choose), embeddings(), *VECTORS),
)
