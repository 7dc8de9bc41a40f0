"""Rules that make complex numbers of real ones and back; their noise is taken as circular."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .domain import Abstract, added, multiplied
from .gaussian import pointwise
from .registry import backward, forward
from .strata import Array


@forward("complex")
def complex_(real: Abstract, imag: Abstract) -> Abstract:
    """E z z'* = E of both parts' products; the mean that is kept is the real part's."""
    wide = added(real, Abstract(imag.dims, np.zeros_like(imag.mean), imag.q))
    return wide.with_(noise=max(real.noise, imag.noise))


@backward("complex")
def complex_back(grad: Abstract) -> dict[str, Any]:
    """Both parts."""
    return {"real": real(grad), "imag": imag(grad)}


@forward("polar")
def polar(abs: Abstract, angle: Abstract) -> Abstract:  # noqa: A002 - ATen's name
    """R exp(i t): E r r' times E cos(t - t')."""
    turn = complex_(pointwise(angle, np.cos).plain(), pointwise(angle, np.sin).plain())
    return multiplied(abs, turn)


@backward("polar")
def polar_back(grad: Abstract, abs: Abstract) -> dict[str, Any]:  # noqa: A002
    """Along the radius half of the gradient's square, across it r times as much."""
    part = imag(grad)
    return {"abs": part, "angle": multiplied(part, abs)}


def _halved(x: Abstract) -> Array:
    return np.asarray((x.q - x.outer()) / 2)


@forward("real")
def real(x: Abstract) -> Abstract:
    """The mean, and half of the covariance: circular noise."""
    known = None if x.known is None else x.known.real
    return Abstract(x.dims, x.mean, _halved(x) + x.outer(), known=known, noise=x.noise)


@forward("imag")
def imag(x: Abstract) -> Abstract:
    """Half of the covariance."""
    known = None if x.known is None else x.known.imag
    return Abstract(x.dims, np.zeros_like(x.mean), _halved(x), known=known, noise=x.noise)


@backward("real", "imag")
def real_back(grad: Abstract) -> dict[str, Any]:
    """One part of a complex gradient."""
    return {"x": grad}


@forward("angle")
def angle(x: Abstract) -> Abstract:
    """Uniform on -pi..pi, independent where the numbers are."""
    r = np.clip(_halved(x) / max(float(_halved(x).max(initial=0.0)), 1e-300), 0.0, 1.0)
    return Abstract(x.dims, np.zeros_like(x.mean), r * (math.pi**2 / 3))
