"""Hypothesis strategies shared by the property tests."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from fanin._fans import MODES, Fan
from fanin._moments.domain import Abstract, concatenated, measured, reshaped
from fanin.distributions import (
    BoundedNormal,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Identity,
    LooksLinear,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from fanin.initializers import (
    FAMILIES,
    CS336Embedding,
    CS336Linear,
    Fixed,
    KaimingNormal,
    KaimingUniform,
    LecunNormal,
    LecunUniform,
    OrthogonalInit,
    TorchDefault,
    VarianceScaling,
    XavierNormal,
    XavierUniform,
)

# The same examples in every run, and no verdict by the clock of a busy machine.
settings.register_profile("fanin", derandomize=True, deadline=None)
settings.load_profile("fanin")


def reals(magnitude: float = 1e3):
    return st.floats(-magnitude, magnitude, allow_subnormal=False)


def positives(low: float = 1e-6, high: float = 1e6):
    """Positive numbers, as likely small as large."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)


@st.composite
def bounded_normals(draw):
    mean, std = draw(reals()), draw(positives(1e-3, 1e3))
    # Bounds in sigmas from the mean, up to 50 of them away, and in either tail.
    low = draw(st.floats(-50, 50) | st.just(-math.inf))
    width = draw(positives(1e-3, 100.0) | st.just(math.inf))
    return BoundedNormal(
        mean,
        std,
        mean + low * std,
        mean + (low + width) * std if math.isfinite(low) else mean + width * std,
    )


uniforms = st.builds(lambda low, width: Uniform(low, low + width), reals(), positives())
normals = st.builds(Normal, positives(), reals())
truncated_normals = st.builds(TruncatedNormal, positives(), positives(1e-4, 40.0), reals())
constants = st.builds(Constant, reals())
sparses = st.builds(Sparse, st.floats(0, 1), positives())
# Keyed by the registry's names, so that a test can assert that none is missing.
LAWS = {
    "Constant": constants,
    "Normal": normals,
    "Uniform": uniforms,
    "TruncatedNormal": truncated_normals,
    "BoundedNormal": bounded_normals(),
    "Sparse": sparses,
    "Orthogonal": st.builds(Orthogonal, reals(), st.booleans()),
    "DeltaOrthogonal": st.builds(DeltaOrthogonal, reals(), st.booleans()),
    "LooksLinear": st.builds(LooksLinear, reals(), *[st.booleans() for _ in range(4)]),
    "Identity": st.builds(Identity, reals()),
    "Dirac": st.builds(Dirac, st.integers(1, 8), reals()),
}
continuous = uniforms | normals | truncated_normals | LAWS["BoundedNormal"]
elementwise = continuous | constants
distributions = st.one_of(*LAWS.values())

fans = st.builds(Fan, positives(1.0, 1e6), positives(1.0, 1e6))
modes = st.sampled_from(MODES)
slopes = st.floats(0, 1)
INITIALIZERS_BY_NAME = {
    "VarianceScaling": st.builds(
        VarianceScaling, positives(), modes, st.sampled_from(FAMILIES), positives(0.1, 10.0)
    ),
    "KaimingNormal": st.builds(KaimingNormal, modes, a=slopes),
    "KaimingUniform": st.builds(KaimingUniform, modes, a=slopes),
    "XavierNormal": st.just(XavierNormal()),
    "XavierUniform": st.just(XavierUniform()),
    "LecunNormal": st.just(LecunNormal()),
    "LecunUniform": st.just(LecunUniform()),
    "TorchDefault": st.just(TorchDefault()),
    "CS336Linear": st.just(CS336Linear()),
    "CS336Embedding": st.just(CS336Embedding()),
    "OrthogonalInit": st.builds(OrthogonalInit, modes),
    "Fixed": st.builds(Fixed, distributions),
}
initializers = st.one_of(*INITIALIZERS_BY_NAME.values())

lengths = st.sampled_from((1, 2, 3, 4, 6))


@st.composite
def numbers(draw, shape):
    """Random numbers of that shape, with a mean, the same for the same seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.normal(draw(st.sampled_from((0.0, 1.0, -2.0))), 1.0, shape)


@st.composite
def abstracts(draw, rank=None):
    """Small tensors whose axes have one or two factors, one of them perhaps two or three segments."""
    rank = draw(st.integers(0, 3)) if rank is None else rank
    factors = [draw(st.lists(lengths, min_size=1, max_size=2)) for _ in range(rank)]
    shape = [math.prod(f) for f in factors]

    def one(parts) -> Abstract:
        flat = [n for f in parts for n in f]
        return reshaped(measured(draw(numbers(flat))).plain(), [math.prod(f) for f in parts])

    if not rank or math.prod(shape) > 80:
        return one([f[:1] for f in factors])
    dim = draw(st.integers(0, rank - 1))
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        own = [list(f) for f in factors]
        own[dim][0] = draw(lengths)
        pieces.append(one(own))
    return concatenated(pieces, dim) if len(pieces) > 1 else pieces[0]
