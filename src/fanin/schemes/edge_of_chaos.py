"""`edge_of_chaos`: nearby inputs neither merge nor fly apart, and every direction keeps its length."""

from __future__ import annotations

import math
from math import sqrt

from .._activations import Nonlinearity
from .._errors import InvalidValueError, PlanError
from .._facts import ModelFacts, ParamInfo
from .._fans import Fan
from .._gains import edge_of_chaos
from .._recipes import (
    VECTORS,
    Choice,
    Scheme,
    always,
    delta_orthogonal,
    embeddings,
    followed_by,
    orthogonal,
    rnn_hidden,
    scaled,
    weights,
)
from ..distributions import Constant, Distribution, LooksLinear, Normal
from ..initializers import LecunNormal
from .orthogonal import is_matrix

DEEP = 10  # from this many layers on, a convolution's centre tap carries the signal alone


def critical_point(activation: Nonlinearity, layers: int) -> tuple[float, float, float]:
    """(q, sigma_w^2, sigma_b^2) with chi = sigma_w^2 E f'(sqrt(q) z)^2 = 1.

    An odd function (tanh) is nearly linear for small q, and the spread of the Jacobian's singular
    values grows like layers * q (Pennington et al. 2017), so q = min(1, 5/layers).
    Others take q = 1, the second moment of standardised inputs.

    Raises:
        InvalidValueError: the nonlinearity has no edge of chaos there (sigmoid, softplus).
    """
    q = min(1.0, 5.0 / max(layers, 1)) if activation.odd else 1.0
    return (q, *edge_of_chaos(activation, q=q))


def mirrored(info: ParamInfo, facts: ModelFacts) -> Choice | None:
    """Mirror images in a deep stack of functions with f(x) - f(-x) = c x: linear as it starts."""
    if info.mirror is None or facts.layers < DEEP:
        return None
    outputs, inputs, slope = info.mirror
    centre = _at_centre(info)
    g = 1.0 / (slope * info.factor)
    follows = followed_by(info) if info.activation else "the output"
    why = f"mirror images (Balduzzi et al. 2017), so that the stack starts linear; {follows}"

    def make(_: Fan | None, shape: tuple[int, ...]) -> Distribution:
        law = LooksLinear(g, outputs=outputs, inputs=inputs, centre=centre)
        block = law.block_of(shape)
        columns = block[1] if centre else math.prod(block[1:])
        return law.scaled(sqrt(max(block[0], columns) / columns))

    return Choice(make, why)


def critical(info: ParamInfo, facts: ModelFacts) -> Choice:
    """Orthogonal (dense) or delta-orthogonal (deep convolution) at the edge of chaos."""
    choice = mirrored(info, facts)
    if choice is not None:
        return choice
    if info.activation is None:
        return isometry(info, facts, 1.0, followed_by(info))
    return isometry(info, facts, *critical_gain(info, info.activation, facts))


def critical_gain(
    info: ParamInfo, activation: Nonlinearity, facts: ModelFacts
) -> tuple[float, str]:
    """sigma_w at the edge of chaos, over what multiplies the layer's output, and why."""
    q, sigma_w2, _ = critical_point(activation, facts.layers)
    why = f"edge of chaos at q={q:.4g}: sigma_w^2={sigma_w2:.6g}{before(info)}; {followed_by(info)}"
    return sqrt(sigma_w2) / info.factor, why


def before(info: ParamInfo) -> str:
    """In words, by what the layer's output is multiplied before its nonlinearity."""
    return "" if info.factor == 1.0 else f", divided by the {info.factor:g} that multiplies it"


def isometry(info: ParamInfo, facts: ModelFacts, gain: float, why: str) -> Choice:
    """The most isometric matrix that the weight's layout allows, times ``gain``."""
    if not is_matrix(info):
        return Choice(
            scaled(LecunNormal(), gain), f"normal (a {info.role} is no single matrix), {why}"
        )
    if _at_centre(info) and facts.layers >= DEEP:
        return Choice(delta_orthogonal(gain), f"delta-orthogonal (Xiao et al. 2018), {why}")
    return Choice(orthogonal(gain), f"orthogonal, {why}")


def _at_centre(info: ParamInfo) -> bool:
    """Whether a convolution has room for its input at one tap."""
    return info.role == "conv" and info.shape[0] >= info.shape[1]


def critical_biases(info: ParamInfo, facts: ModelFacts) -> Choice | None:
    """N(0, sigma_b^2) where the edge of chaos asks for it, else zero."""
    if info.role == "bias" and info.mirror is not None and facts.layers >= DEEP:
        return Choice(always(Constant(0.0)), "bias: zero, which keeps mirror images apart")
    if info.role != "bias" or info.activation is None:
        return None
    _, _, sigma_b2 = critical_point(info.activation, facts.layers)
    if not sigma_b2:
        return Choice(always(Constant(0.0)), "bias: zero, as the edge of chaos asks here")
    return Choice(
        always(Normal(sqrt(sigma_b2) / info.factor)),
        f"bias: edge of chaos asks for variance {sigma_b2:.4g}{before(info)}",
    )


def _strict(info: ParamInfo, facts: ModelFacts) -> Choice:
    try:
        return critical(info, facts)
    except InvalidValueError as error:
        raise PlanError(
            f"{info.name}: {error} Use scheme='auto' or 'kaiming', or override this weight."
        ) from error


SCHEME = Scheme(
    "edge_of_chaos",
    "orthogonal at the order-to-chaos transition, biases included",
    "Schoenholz et al. 2017, Deep Information Propagation; Pennington et al. 2017; Xiao et al. 2018",
    (rnn_hidden, weights(_strict), embeddings(), critical_biases, *VECTORS),
)
