"""Fourier transforms against their own complex matrices; short-time ones against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exactly import assert_same, written_out
from fanin._moments import complexes, frames, registry, spectral
from fanin._moments.domain import Abstract, full, measured, scaled, uniform
from fanin._moments.registry import BACKWARD, FORWARD
from tensors import correlated, stratified

REAL = [
    ("fft_fft", correlated(2, 6, mean=0.5), {"n": None, "dim": -1, "norm": None}),
    ("fft_fft", stratified(7, 2), {"n": None, "dim": 0, "norm": "ortho"}),
    ("fft_fft", correlated(2, 5, mean=1.0), {"n": 8, "dim": 1, "norm": "forward"}),
    ("fft_fft", correlated(2, 5, mean=1.0), {"n": 3, "dim": 1, "norm": None}),
    ("fft_ifft", correlated(2, 6, mean=0.5), {"n": None, "dim": -1, "norm": None}),
    ("fft_fft2", correlated(2, 3, 4, mean=0.5), {"s": None, "dim": (-2, -1), "norm": None}),
    ("fft_ifft2", correlated(2, 3, 4, mean=0.5), {"s": (4, 4), "dim": (-2, -1), "norm": "ortho"}),
    ("fft_fftn", correlated(2, 3, 4, mean=0.5), {"s": None, "dim": None, "norm": None}),
    ("fft_ifftn", correlated(2, 3, 2), {"s": (2, 2), "dim": None, "norm": None}),
    ("fft_rfft", correlated(2, 6, mean=0.5), {"n": None, "dim": -1, "norm": None}),
    ("fft_rfft", stratified(7, 2), {"n": None, "dim": 0, "norm": "ortho"}),
    ("fft_rfft2", correlated(2, 4, 5, mean=0.5), {"s": None, "dim": (-2, -1), "norm": "ortho"}),
    ("fft_rfftn", correlated(2, 3, 4), {"s": None, "dim": None, "norm": None}),
    ("fft_ihfft", correlated(2, 6, mean=0.5), {"n": None, "dim": -1, "norm": None}),
    ("fft_ihfft2", correlated(2, 4, 5), {"s": None, "dim": (-2, -1), "norm": None}),
    ("fft_ihfftn", correlated(2, 3, 4), {"s": None, "dim": None, "norm": "ortho"}),
    ("_fft_c2c", correlated(2, 5), {"dim": [1], "normalization": 1, "forward": True}),
    ("_fft_r2c", correlated(2, 5), {"dim": [1], "normalization": 0, "onesided": False}),
]


def run(op, x, given):
    if op.startswith("_fft"):
        z = torch.as_tensor(x)
        z = z.to(torch.complex128) if op == "_fft_c2c" else z
        return getattr(torch.ops.aten, op)(z, *given.values()).resolve_conj().numpy()
    return (
        getattr(torch.fft, op.removeprefix("fft_"))(torch.as_tensor(x), **given)
        .resolve_conj()
        .numpy()
    )


def matrix_of(op, shape, given):
    n = math.prod(shape)
    columns = [run(op, np.eye(n)[i].reshape(shape), given) for i in range(n)]
    return np.stack([c.ravel() for c in columns], 1), columns[0].shape


def half_only(op, given):
    """Whether only the first half of a real signal's frequencies is given."""
    return "rfft" in op or "ihfft" in op or given.get("onesided")


@pytest.mark.parametrize(("op", "x", "given"), REAL, ids=lambda v: v if isinstance(v, str) else "")
def test_transforms(op, x, given):
    """Exact class by class, pairs of other frequencies of a half apart, which are averaged over all."""
    m, shape = matrix_of(op, x.shape, given)
    out = FORWARD[op](x=x, op=op, shapes=[shape], **given)
    assert out.shape == shape
    mean, second = written_out(x)
    want = (m @ second @ m.conj().T).real
    if half_only(op, given):
        assert out.second_moment == pytest.approx(np.diag(want).mean(), rel=0.15)
    elif given.get("n", 0) in (None, x.shape[-1]) or given.get("s", 0) is None or op == "_fft_c2c":
        assert_same(op, out, (m @ mean).real, want)
    else:
        assert out.second_moment == pytest.approx(np.diag(want).mean())


@pytest.mark.parametrize(("op", "x", "given"), REAL, ids=lambda v: v if isinstance(v, str) else "")
def test_gradients(op, x, given):
    """Of a circular cotangent the real part is left: half of the square, for real arguments.

    An argument that meets only complex numbers afterwards keeps all of it.
    """
    m, shape = matrix_of(op, x.shape, given)
    grad = full(shape, 2.0)
    back = BACKWARD[op](grad=grad, x=x, op=op, **given)["x"]
    half = 0.5 if half_only(op, given) or op == "_fft_r2c" else 1.0
    want = half * 2.0 * (m.conj().T @ m).real
    assert back.shape == x.shape
    assert back.second_moment == pytest.approx(np.diag(want).mean())


INVERSES = [
    ("fft_rfft", "fft_irfft", {"dim": -1, "norm": None}, {"n": None}),
    ("fft_rfft2", "fft_irfft2", {"dim": (-2, -1), "norm": "ortho"}, {"s": None}),
    ("fft_rfftn", "fft_irfftn", {"dim": (-2, -1), "norm": "forward"}, {"s": None}),
    ("fft_ihfft", "fft_hfft", {"dim": -1, "norm": None}, {"n": None}),
    ("fft_ihfft2", "fft_hfft2", {"dim": (-2, -1), "norm": "ortho"}, {"s": None}),
    ("fft_ihfftn", "fft_hfftn", {"dim": (-2, -1), "norm": None}, {"s": None}),
    ("fft_fft", "fft_ifft", {"dim": -1, "norm": None}, {"n": None}),
]


@pytest.mark.parametrize(("there", "back", "given", "size"), INVERSES)
@pytest.mark.parametrize("n", [6, 7])
def test_a_transform_and_its_inverse_give_back_what_was_there(there, back, given, size, n):
    x = correlated(2, 5, n, mean=0.5)
    half = FORWARD[there](x=x, op=there, shapes=[None], **given, **size)
    again = uniform(FORWARD[back](x=half, op=back, shapes=[x.shape], **given, **size))
    np.testing.assert_allclose(again.q, x.q, atol=1e-9)
    np.testing.assert_allclose(again.mean, x.mean, atol=1e-9)


def test_native_inverse():
    x = correlated(2, 6, mean=0.5)
    half = FORWARD["_fft_r2c"](x=x, op="_fft_r2c", dim=[1], normalization=0, onesided=True)
    again = FORWARD["_fft_c2r"](
        x=half, op="_fft_c2r", dim=[1], normalization=2, last_dim_size=6, shapes=[(2, 6)]
    )
    np.testing.assert_allclose(uniform(again).q, x.q, atol=1e-9)


@pytest.mark.parametrize("op", ["fft_irfft", "fft_hfft", "_fft_c2r"])
@pytest.mark.parametrize("n", [6, 7])
def test_gradients_of_inverses(op, n):
    """y = Re(A z): the gradient is A^H r."""
    given = (
        {"dim": [1], "normalization": 2, "last_dim_size": n}
        if op == "_fft_c2r"
        else {"n": n, "dim": -1, "norm": "ortho"}
    )
    half = n // 2 + 1

    def apply(z):
        z = torch.as_tensor(z)
        if op == "_fft_c2r":
            return torch.ops.aten._fft_c2r(z, [1], 2, n)
        return getattr(torch.fft, op.removeprefix("fft_"))(z, **given)

    rows = []
    for i in range(half):
        for unit in (1.0, 1j):
            z = np.zeros((1, half), complex)
            z[0, i] = unit
            rows.append(apply(z).numpy().ravel())
    squares = (np.stack(rows) ** 2).sum(1).reshape(half, 2).sum(1)
    back = BACKWARD[op](grad=full((1, n), 1.0), x=full((1, half), 1.0), op=op, **given)["x"]
    assert back.shape == (1, half)
    # torch ignores the imaginary part of frequencies that a real signal has none of.
    whole = squares.copy()
    whole[0] *= 1.0
    assert back.second_moment == pytest.approx(whole.mean(), rel=0.2)


@pytest.mark.parametrize("op", ["fft_irfft2", "fft_irfftn", "fft_hfft2", "fft_hfftn"])
def test_gradients_of_inverses_on_two_axes(op):
    """Parseval: an orthonormal inverse keeps the sum of squares, twice what stands for two."""
    back = BACKWARD[op](
        grad=full((2, 4, 6), 1.0), x=full((2, 4, 4), 1.0), op=op, s=None, dim=(-2, -1), norm="ortho"
    )["x"]
    assert back.shape == (2, 4, 4)
    assert back.second_moment == pytest.approx((1 + 4 + 4 + 1) / 4)


@pytest.mark.parametrize("op", ["fft_fftshift", "fft_ifftshift"])
def test_shifts(op):
    x = stratified(3, 5, dim=1)
    real = getattr(torch.fft, op.removeprefix("fft_"))
    mean, second = written_out(x)
    places = real(torch.arange(15).reshape(3, 5), dim=1).numpy().ravel()
    assert_same(op, FORWARD[op](x=x, dim=[1], op=op), mean[places], second[np.ix_(places, places)])
    back = BACKWARD[op](grad=FORWARD[op](x=x, dim=[1], op=op), dim=[1], op=op)["x"]
    np.testing.assert_allclose(back.second_moment, x.second_moment)


SIGNAL = correlated(3, 64, mean=0.3)
STFT = {
    "n_fft": 16,
    "hop_length": 4,
    "win_length": 16,
    "normalized": False,
    "onesided": True,
    "return_complex": True,
}


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("window", [torch.ones, torch.hann_window])
def test_short_time_transform(center, window):
    torch.manual_seed(0)
    values = window(16, dtype=torch.float64)
    x = torch.randn(400, 64, dtype=torch.float64).requires_grad_(True)
    out = torch.stft(x, 16, 4, 16, values, center=center, return_complex=True)
    given = dict(
        STFT,
        window=measured(values.numpy()),
        **({"center": True, "pad_mode": "reflect"} if center else {}),
    )
    predicted = FORWARD["stft"](x=full((400, 64), 1.0), shapes=[tuple(out.shape)], **given)
    assert predicted.shape == tuple(out.shape)
    # 400 signals of 64 independent numbers: a standard error of about 0.9 % of the mean square.
    assert predicted.second_moment == pytest.approx(
        float(out.detach().abs().pow(2).mean()), rel=0.045
    )
    cotangent = torch.randn(out.shape, dtype=torch.complex128)
    (grad,) = torch.autograd.grad(out, x, cotangent)
    back = BACKWARD["stft"](grad=full(tuple(out.shape), 1.0), x=full((400, 64), 1.0), **given)["x"]
    assert back.second_moment == pytest.approx(float(grad.pow(2).mean()), rel=0.06)


def test_parts_instead_of_complex_numbers():
    whole = FORWARD["stft"](x=SIGNAL, shapes=[(3, 9, 13)], **STFT)
    parts = FORWARD["stft"](x=SIGNAL, shapes=[(3, 9, 13, 2)], **{**STFT, "return_complex": False})
    assert parts.shape == (3, 9, 13, 2)
    assert 2 * parts.second_moment == pytest.approx(whole.second_moment)
    back = BACKWARD["stft"](
        grad=full((3, 9, 13, 2), 1.0), x=SIGNAL, **{**STFT, "return_complex": False}
    )["x"]
    one = BACKWARD["stft"](grad=full((3, 9, 13), 2.0), x=SIGNAL, **STFT)["x"]
    assert back.second_moment == pytest.approx(one.second_moment)


def test_frames_added_up():
    """Of frames that are independent: their squares add up where they overlap."""
    torch.manual_seed(1)
    window = torch.hann_window(16, dtype=torch.float64)
    z = torch.randn(200, 9, 33, dtype=torch.complex128).requires_grad_(True)
    out = torch.istft(z, 16, 4, 16, window)
    given = {"n_fft": 16, "hop_length": 4, "window": measured(window.numpy())}
    shape = tuple(out.shape)
    again = FORWARD["istft"](x=full((200, 9, 33), 1.0), shapes=[shape], **given)
    assert again.shape == shape
    # The imaginary parts of the first and the last of 9 frequencies are ignored: 1 of 16.
    assert again.second_moment == pytest.approx(float(out.detach().pow(2).mean()), rel=0.12)
    (grad,) = torch.autograd.grad(out, z, torch.randn_like(out))
    back = BACKWARD["istft"](grad=full(shape, 1.0), x=full((200, 9, 33), 1.0), **given)["x"]
    assert back.shape == (200, 9, 33)
    # Frames at the ends hold fewer samples of the result.
    assert back.second_moment == pytest.approx(float(grad.abs().pow(2).mean()), rel=0.2)


def test_complex_numbers():
    z = FORWARD["complex"](real=correlated(3, 4, mean=1.0), imag=correlated(3, 4))
    assert z.second_moment == pytest.approx(
        correlated(3, 4, mean=1.0).second_moment + correlated(3, 4).second_moment
    )
    assert FORWARD["real"](x=z).average_mean == pytest.approx(1.0)
    both = [FORWARD[op](x=z).second_moment for op in ("real", "imag")]
    assert sum(both) == pytest.approx(z.second_moment)
    unit = FORWARD["polar"](abs=full((5, 6), 1.0, 1.0), angle=full((5, 6), 100.0))
    assert unit.second_moment == pytest.approx(1.0)
    assert unit.q[1, 1] == pytest.approx(0.0, abs=1e-6)
    turn = FORWARD["polar"](
        abs=full((5, 6), 1.0, 1.0), angle=scaled(full((5, 6), 1.0), 0.5).plain()
    )
    assert turn.q[1, 1] == pytest.approx(math.exp(-0.25), rel=1e-6)
    assert FORWARD["angle"](x=full((4,), 1.0)).second_moment == pytest.approx(math.pi**2 / 3)
    grads = BACKWARD["polar"](grad=full((5, 6), 2.0), abs=full((5, 6), 9.0, 3.0))
    assert grads["abs"].second_moment == pytest.approx(1.0)
    assert grads["angle"].second_moment == pytest.approx(9.0)
    parts = BACKWARD["complex"](grad=full((3,), 2.0))
    assert [parts[k].second_moment for k in ("real", "imag")] == [1.0, 1.0]
    assert BACKWARD["real"](grad=full((3,), 2.0))["x"].second_moment == 2.0


def test_frequencies_are_known():
    assert (
        FORWARD["fft_fftfreq"](n=8, d=0.5, op="fft_fftfreq").known == np.fft.fftfreq(8, 0.5)
    ).all()
    assert (FORWARD["fft_rfftfreq"](n=8, op="fft_rfftfreq").known == np.fft.rfftfreq(8)).all()


def test_every_rule_has_a_case():
    tried = {op for op, _, _ in REAL} | {op for pair in INVERSES for op in pair[:2]}
    tried |= {
        "_fft_c2r",
        "fft_fftshift",
        "fft_ifftshift",
        "stft",
        "istft",
        "complex",
        "polar",
        "real",
        "imag",
    }
    mine = {m.__name__ for m in (spectral, frames, complexes)}
    for table, more in (
        (registry.FORWARD, {"angle", "fft_fftfreq", "fft_rfftfreq"}),
        (registry.BACKWARD, set()),
    ):
        assert {op for op, r in table.items() if r.function.__module__ in mine} == tried | more
    assert isinstance(SIGNAL, Abstract)
