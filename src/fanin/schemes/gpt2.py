"""`gpt2`: one small std for everything, smaller for what writes into the residual stream."""

from __future__ import annotations

from math import sqrt

from .._facts import ModelFacts, ParamInfo
from .._recipes import VECTORS, Choice, Scheme, always, embeddings, weights, writes_to_residual
from ..distributions import Normal

STD = 0.02


def choose(info: ParamInfo, facts: ModelFacts) -> Choice:
    """N(0, 0.02^2); 0.02/sqrt(2N) for the projections that end the 2N branches of N blocks."""
    if writes_to_residual(info) and facts.branches:
        return Choice(
            always(Normal(STD / sqrt(facts.branches))),
            f"gpt2: 0.02/sqrt({facts.branches}), one of {facts.branches} residual branches",
        )
    return Choice(always(Normal(STD)), "gpt2: std 0.02")


SCHEME = Scheme(
    "gpt2",
    "std 0.02, residual projections divided by sqrt(2 blocks)",
    "Radford et al. 2019, section 2.3; std from the released gpt-2 code",
    (weights(choose), embeddings(std=STD), *VECTORS),
)
