"""`kaiming`: keep the forward second moment through rectifiers."""

from __future__ import annotations

from .._facts import ModelFacts, ParamInfo
from .._recipes import (
    VECTORS,
    Choice,
    Scheme,
    embeddings,
    followed_by,
    forward_gain,
    rnn_hidden,
    scaled,
    weights,
)
from ..initializers import LecunNormal


def choose(info: ParamInfo, _: ModelFacts) -> Choice:
    """Std = gain/sqrt(fan_in), gain = 1/sqrt(E f(z)^2) of the function that follows."""
    g = forward_gain(info.activation)
    return Choice(
        scaled(LecunNormal(), g), f"kaiming: gain {g:.4g}/sqrt(fan_in); {followed_by(info)}"
    )


SCHEME = Scheme(
    "kaiming",
    "normal, gain of the following nonlinearity over sqrt(fan_in)",
    "He, Zhang, Ren, Sun 2015, Delving Deep into Rectifiers, eq. 10",
    (rnn_hidden, weights(choose), embeddings(), *VECTORS),
)
