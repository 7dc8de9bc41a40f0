"""Rules of short-time Fourier transforms: frames times a window, transformed, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import strata
from .domain import Abstract, full, limited, measured, multiplied, permuted, resized, scaled
from .maps import Linear, mapped
from .registry import backward, forward
from .spectral import doubled, real_from_half, rfft_back, transformed
from .views import view_as_complex, view_as_real
from .windows import extending, windows

Shapes = Sequence[tuple[int, ...]]


class Frames:
    """How a signal is cut into frames: their length, step, window, padding."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.length = int(given["n_fft"])
        self.step = int(given.get("hop_length") or self.length // 4)
        window = given.get("window")
        size = int(given.get("win_length") or self.length)
        values = (
            np.ones(size) if window is None or window.known is None else np.asarray(window.known)
        )
        before = (self.length - size) // 2
        self.window = np.pad(values.astype(float), (before, self.length - size - before))
        self.center = bool(given.get("center", True)) and "center" in given
        self.mode = str(given.get("pad_mode", "reflect"))
        norm = bool(given.get("normalized", False))
        self.scale = 1.0 / math.sqrt(self.length) if norm else 1.0
        self.onesided = given.get("onesided") is not False

    @property
    def weights(self) -> Abstract:
        """The window along a last axis."""
        return measured(self.window).plain()


@forward("stft")
def stft(x: Abstract, shapes: Shapes, **given: Any) -> Abstract:
    """Frames times the window, each transformed: (.., frequencies, frames)."""
    frames = Frames(given)
    if frames.center:
        x = mapped(x, len(x.dims) - 1, _padding(x.shape[-1], frames))
    return_complex = given.get("return_complex")
    shape = shapes[0] if return_complex else shapes[0][:-1]
    n, count, r = x.shape[-1], shape[-1], len(x.dims)
    cutting = windows(n, count, frames.length, step=frames.step)
    y = mapped(x, r - 1, cutting, (strata.whole(count), strata.whole(frames.length)))
    y = transformed(multiplied(y, frames.weights), r, frames.scale, shape[-2])
    y = limited(permuted(y, [*range(r - 1), r, r - 1]))
    return y if return_complex else view_as_real(y)


def _padding(n: int, frames: Frames) -> Linear:
    half = frames.length // 2
    if frames.mode == "constant":
        return windows(n, 1, n + 2 * half, step=1, pad=half)
    return extending(n, half, half, frames.mode)


@backward("stft")
def stft_back(grad: Abstract, x: Abstract, **given: Any) -> dict[str, Any]:
    """Real parts of the frequencies' sums, times the window, added up where frames overlap."""
    frames = Frames(given)
    if not given.get("return_complex"):
        grad = view_as_complex(grad)
    r = len(x.dims)
    half = frames.length // 2 if frames.center else 0
    n, count = x.shape[-1] + 2 * half, grad.shape[-1]
    turned = permuted(grad, [*range(r - 1), r, r - 1])
    line = rfft_back(
        turned, full((*turned.shape[:-1], frames.length), 1.0), "fft_rfft",
        n=frames.length, dim=-1, onesided=frames.onesided,
    )["x"]  # fmt: skip
    line = multiplied(scaled(line, frames.scale), frames.weights)
    cutting = windows(n, count, frames.length, step=frames.step)
    back = mapped(line, r - 1, cutting.transposed, span=2)
    if frames.center:
        back = mapped(back, r - 1, _padding(x.shape[-1], frames).transposed)
    return {"x": limited(back)}


@forward("istft")
def istft(x: Abstract, shapes: Shapes, **given: Any) -> Abstract:
    """Frames back to real numbers, times the window, added up, over the sum of its squares."""
    frames = Frames(given)
    r = len(x.dims)
    line = real_from_half(permuted(x, [*range(r - 2), r - 1, r - 2]), r - 1, frames.length, 1.0)
    count = x.shape[-1]
    n = frames.length + frames.step * (count - 1)
    cutting = windows(n, count, frames.length, step=frames.step).transposed
    whole = mapped(multiplied(line, frames.weights), r - 2, cutting, span=2)
    level = frames.step / max(float((frames.window**2).sum()), 1e-30)
    scale = level / frames.length / frames.scale
    return scaled(resized(whole, r - 2, shapes[0][-1]), scale).plain()


@backward("istft")
def istft_back(grad: Abstract, x: Abstract, **given: Any) -> dict[str, Any]:
    """The frames of the gradient, times the window, transformed."""
    frames = Frames(given)
    r, count = len(x.dims), x.shape[-1]
    level = frames.step / max(float((frames.window**2).sum()), 1e-30)
    n = frames.length + frames.step * (count - 1)
    long = resized(grad, r - 2, n)
    cutting = windows(n, count, frames.length, step=frames.step)
    y = mapped(long, r - 2, cutting, (strata.whole(count), strata.whole(frames.length)))
    scale = level / frames.length / frames.scale
    y = transformed(multiplied(y, frames.weights), r - 1, scale, x.shape[-2])
    y = doubled(y, r - 1, frames.length)
    return {"x": limited(permuted(y, [*range(r - 2), r - 1, r - 2]))}
