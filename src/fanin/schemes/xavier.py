"""`xavier`: a compromise between the forward and the backward second moment."""

from __future__ import annotations

from .._facts import ModelFacts, ParamInfo
from .._recipes import VECTORS, Choice, Scheme, embeddings, rnn_hidden, scaled, weights
from ..initializers import XavierUniform


def choose(_: ParamInfo, __: ModelFacts) -> Choice:
    """Uniform in +-sqrt(6/(fan_in + fan_out)), per slice where a tensor packs several."""
    return Choice(scaled(XavierUniform()), "xavier: variance 2/(fan_in + fan_out)")


SCHEME = Scheme(
    "xavier",
    "uniform, variance 2/(fan_in + fan_out)",
    "Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward networks, eq. 16",
    (rnn_hidden, weights(choose), embeddings(), *VECTORS),
)
