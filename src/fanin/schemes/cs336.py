"""`cs336`: the rule of Stanford's CS336, assignment 1."""

from __future__ import annotations

from .._facts import ModelFacts, ParamInfo
from .._recipes import VECTORS, Choice, Scheme, embeddings, scaled, weights
from ..initializers import CS336Embedding, CS336Linear


def choose(_: ParamInfo, __: ModelFacts) -> Choice:
    """N(0, 2/(d_in + d_out)) cut at 3 sigma."""
    return Choice(scaled(CS336Linear()), "cs336: variance 2/(d_in + d_out), cut at 3 sigma")


SCHEME = Scheme(
    "cs336",
    "truncated normals: linear 2/(d_in + d_out), embedding 1, norms 1",
    "Stanford CS336, assignment 1, section 3.4.1",
    (weights(choose), embeddings(make=scaled(CS336Embedding())), *VECTORS),
)
