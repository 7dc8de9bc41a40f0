"""The experiments: what they measure agrees with theory and with figures found independently.

Tolerances are three standard errors, derived where they stand. REFERENCE holds figures measured
once with torch.nn.init alone, from other random numbers.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from fanin import experiments, initialize_
from fanin._errors import InvalidValueError, MissingExtraError
from fanin.distributions import Normal
from fanin.experiments import (
    Result,
    Table,
    _digits,
    _figures,
    _mean_field,
    _networks,
    _training,
    convergence,
    fan_modes,
    hundred_layers,
    leaky_relu,
    main,
)
from fanin.experiments._result import portion, silent
from fanin.experiments._sandbox import sandbox

EXAMPLES = Path(__file__).parents[1] / "examples"


# the package ---------------------------------------------------------------------------------


def test_names_cost_no_torch():
    code = "import sys; from fanin.experiments import NAMES, SUMMARIES; assert NAMES == tuple(SUMMARIES); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_has_a_module():
    assert experiments.NAMES[0] == "main"
    for name in experiments.NAMES:
        assert callable(
            __import__(f"fanin.experiments.{experiments._MODULES[name]}", fromlist=["run"]).run
        )


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(InvalidValueError, match="leaky-relu.*Did you mean '100-layers'"):
        experiments.run("100-layer", out=tmp_path)


# every experiment, in a small form -----------------------------------------------------------

SMALL = {
    "main": {
        "networks": (
            main.Network("tanh", 20, 32, nn.Tanh, 12),
            main.Network("ReLU", 12, 32, nn.ReLU, 12),
        )
    },
    "100-layers": {"size": hundred_layers.Size(64, 32, 12, (1, 5, 12))},
    "fan-modes": {},
    "leaky-relu": {"width": 128},
    "convergence": {
        "networks": (
            convergence.Network("MLP, small", lambda: _networks.mlp(6, 16, nn.ReLU), 6, 32, 1.0),
            convergence.Network(
                "CNN, small", lambda: _networks.convnet(4, 8, halve_at=1), 4, 32, 1.0
            ),
        )
    },
}


def run_small(name: str, out: Path, seed: int = 0, progress=silent) -> Result:
    module = __import__(f"fanin.experiments.{experiments._MODULES[name]}", fromlist=["run"])
    return module.run(out=out, seed=seed, progress=progress, **SMALL[name])


@pytest.fixture(scope="module", params=experiments.NAMES)
def small(request, tmp_path_factory):
    """(name, result, fractions told, state before, state after)."""
    told: list[float] = []
    torch.manual_seed(5)
    before = process_state()
    result = run_small(
        request.param, tmp_path_factory.mktemp("out") / "new", progress=lambda f, _: told.append(f)
    )
    return request.param, result, told, before, process_state()


def process_state():
    flushed = float(torch.tensor(1e-39) * 1.0) == 0.0
    return (
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        flushed,
    )


def test_result_is_complete(small):
    name, result, _, _, _ = small
    assert result.name == name
    assert result.summary
    assert result.notes
    assert all(len(row) == len(t.header) for t in result.tables for row in t.rows)


def test_text_fits_80_columns(small):
    _, result, _, _, _ = small
    lines = [line for line in str(result).splitlines() if not line.startswith("figure: ")]
    assert max(map(len, lines)) <= 80
    assert all(t.title.split()[0] in str(result) for t in result.tables)


def test_json_is_strict(small):
    _, result, _, _, _ = small
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [t["title"] for t in data["tables"]] == [t.title for t in result.tables]


def test_figures_are_written(small):
    _, result, _, _, _ = small
    png, svg = result.figures
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ET.parse(svg).getroot().tag.endswith("svg")


def test_progress_never_goes_back(small):
    _, _, told, _, _ = small
    assert told == sorted(told)
    assert 0.0 <= told[0]
    assert 0.9 <= told[-1] <= 1.0


def test_nothing_is_left_changed(small):
    _, _, _, before, after = small
    assert before == after


@pytest.mark.parametrize("name", experiments.NAMES)
def test_seed_decides(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    first, again, other = (run_small(name, tmp_path, seed) for seed in (1, 1, 2))
    assert repr(first.tables) == repr(again.tables)
    assert repr(first.tables) != repr(other.tables)
    assert first.figures == ()
    assert any("fanin[plot]" in note for note in first.notes)
    assert not list(tmp_path.iterdir())


def test_sandbox_restores_on_error():
    torch.set_num_threads(2)
    before = process_state()
    with pytest.raises(RuntimeError, match="no"), sandbox(3, flush_denormal=True):
        assert torch.get_num_threads() == 1
        assert float(torch.tensor(1e-39) * 1.0) == 0.0
        torch.randn(2)
        raise RuntimeError("no")
    after = process_state()
    torch.set_num_threads(1)
    assert before == after


def test_sandbox_works_inside_no_grad_and_float64():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), sandbox(0, flush_denormal=False):
            assert torch.is_grad_enabled()
            assert torch.empty(1).dtype == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    paths, notes = _figures.draw("x", tmp_path, (1, 1), lambda figure: None)
    assert paths == ()
    assert "fanin[plot]" in notes[0]


def test_figures_are_reproducible(tmp_path):
    def paint(figure):
        figure.subplots().plot([1, 2, 3])

    (first, _), _ = _figures.draw("a", tmp_path / "1", (2, 2), paint)
    (second, _), _ = _figures.draw("a", tmp_path / "2", (2, 2), paint)
    for suffix in (".png", ".svg"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


# results -------------------------------------------------------------------------------------


def test_table_formats():
    table = Table(
        "t", ("a", "b", "c"), ((1, 0.25, "x"), (None, 1e-13, "y"), (2, math.nan, "z")), {"b": ".2g"}
    )
    text = Result("main", "s", (table,)).text()
    assert [line.split() for line in text.splitlines()[2:5]] == [
        ["1", "0.25", "x"],
        ["-", "1e-13", "y"],
        ["2", "nan", "z"],
    ]


def test_three_digits_by_default():
    text = Result("main", "s", (Table("t", ("a",), ((1.0,), (256.4,), (1.234e-5,))),)).text()
    assert text.splitlines()[2:5] == ["   1.00", "    256", "1.23e-5"]


def test_portion_nests():
    told = []
    inner = portion(portion(lambda f, t: told.append((f, t)), 0.5, 1.0), 0.0, 0.5)
    inner(1.0, "x")
    assert told == [(0.75, "x")]


# data, networks, training --------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return _digits.load_digits()


def test_digits(digits):
    assert digits.x_train.shape == (1400, 64)
    assert digits.x_test.shape == (397, 64)
    varies = digits.x_train.std(0) > 0
    assert torch.allclose(digits.x_train.mean(0), torch.zeros(64), atol=1e-5)
    assert torch.allclose(digits.x_train.std(0)[varies], torch.ones(int(varies.sum())), atol=1e-5)
    assert not digits.x_train[:, ~varies].any()
    assert set(digits.y_test.tolist()) == set(range(10))


def test_missing_sklearn_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*fanin\[data\]"):
        main.run(out=tmp_path)


@pytest.mark.parametrize(
    "net", [_networks.mlp(5, 16, nn.Tanh), _networks.convnet(5, 8, halve_at=2)], ids=["mlp", "cnn"]
)
def test_networks_have_their_depth(net):
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    assert len(weights) == 5
    assert net(torch.randn(3, 64)).shape == (3, 10)


def test_batches_see_each_image_once_an_epoch():
    stream = _training._batches(100, 32, seed=0)
    epochs = [torch.cat([next(stream) for _ in range(3)]) for _ in range(2)]
    assert all(len(set(e.tolist())) == 96 for e in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_training_learns_and_counts(digits):
    """A linear model on digits is above 90 % after 100 steps (scikit-learn's logistic regression: 96 %)."""
    model = nn.Linear(64, 10)
    done = _training.train(
        model,
        digits,
        lambda p: torch.optim.SGD(p, lr=0.1),
        steps=100,
        batch=64,
        seed=0,
        progress=silent,
        label="",
    )
    assert len(done.losses) == 100
    assert done.test_accuracy > 0.9
    with torch.no_grad():
        right = (model(digits.x_test).argmax(1) == digits.y_test).sum().item()
    assert done.test_accuracy == pytest.approx(right / 397)
    assert done.around(100) == pytest.approx(sum(done.losses[90:]) / 10)


# theory --------------------------------------------------------------------------------------


def gauss(f, q):
    """E f(sqrt(q) z), by scipy."""
    return integrate.quad(
        lambda z: f(math.sqrt(q) * z) * stats.norm.pdf(z), -12, 12, points=[0.0], limit=200
    )[0]


@pytest.mark.parametrize(("name", "f"), [("tanh", math.tanh), ("relu", lambda u: max(u, 0.0))])
@pytest.mark.parametrize(("sigma_w2", "sigma_b2"), [(1.0, 0.0), (1 / 3, 1e-3), (25 / 9, 0.2)])
def test_expected_std_against_scipy(name, f, sigma_w2, sigma_b2):
    q = sigma_w2 + sigma_b2
    for expected in _mean_field.expected_path(name, sigma_w2, sigma_b2, depth=6, width=512):
        second = gauss(lambda u: f(u) ** 2, q)
        assert expected.std == pytest.approx(math.sqrt(second - gauss(f, q) ** 2), rel=1e-7)
        q = sigma_w2 * second + sigma_b2


def test_expected_cosine_of_relu_is_the_arc_cosine_kernel():
    """c' = (sqrt(1 - c^2) + (pi - acos c) c) / pi (Cho & Saul 2009)."""
    c = 0.0
    for expected in _mean_field.expected_path("relu", 2.0, 0.0, depth=100, width=512):
        c = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
        assert expected.cosine == pytest.approx(c, rel=1e-9)


def test_spread_of_relu():
    """K = E f^4 / (E f^2)^2 - 1 = (3/2)/(1/4) - 1 = 5, and ReLU forgets nothing: log m2 has variance 5 L/n."""
    *_, last = _mean_field.expected_path("relu", 2.0, 0.0, depth=100, width=512)
    assert last.log_shift == pytest.approx(-5 * 100 / 512 / 4, rel=1e-4)
    assert last.log_error == pytest.approx(math.sqrt(5 * 100 / 512 + 5 / 512**2) / 2, rel=1e-4)
    *_, last = _mean_field.expected_path("relu", 2.0, 0.0, depth=100, width=512, orthogonal=True)
    assert last.log_shift == pytest.approx(-3 * 100 / 512 / 4, rel=1e-3)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_spread_by_simulation(orthogonal):
    """One input through 20 ReLU layers of 64, 300 networks: mean and sd of log rms are as said.

    An sd from 300 draws has relative standard error 1/sqrt(600) = 4 %; the log of a second moment
    is only nearly normal at n = 64, for which another 4 % are allowed.
    """
    n, depth, count = 64, 20, 300
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, n, generator=generator, dtype=torch.float64)
    x *= math.sqrt(n) / x.norm(dim=1, keepdim=True)
    for _ in range(depth):
        w = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
        if orthogonal:
            q, r = torch.linalg.qr(w)
            w = q * r.diagonal(dim1=1, dim2=2).sign()[:, None] * math.sqrt(n)
        x = torch.relu(torch.einsum("coi,ci->co", w, x) * math.sqrt(2 / n))
    logs = x.square().mean(1).log()
    *_, expected = _mean_field.expected_path(
        "relu", 2.0, 0.0, depth=depth, width=n, orthogonal=orthogonal
    )
    sd = 2 * math.sqrt(expected.log_error**2 - 5 / n**2 / 4)
    assert float(logs.std()) == pytest.approx(sd, rel=3 * 0.04 + 0.04)
    # The mean of a log: -variance/2, and half the third cumulant, of order 1/n, allowed beside.
    assert (
        abs(float(logs.mean()) - 2 * expected.log_shift)
        < 3 * sd / math.sqrt(count) + 10 * depth / n**2
    )


def test_overflow_is_told():
    *_, last = _mean_field.expected_path("relu", 1e6, 0.0, depth=100, width=512)
    assert last.std == math.inf
    assert math.isnan(last.log_error)


# 100 layers ----------------------------------------------------------------------------------

# std at layers 1, 10, 50, 100, each from one network of 512 units.
REFERENCE = {
    "tanh": {
        "N(0, 1)": (0.982, 0.982, 0.982, 0.982),
        "U(-1, 1)/sqrt(n)": (0.461, 2.99e-3, 9e-13, 9e-25),
        "PyTorch default": (0.461, 0.031, 0.031, 0.031),
        "Xavier uniform": (0.628, 0.228, 0.105, 0.062),
        "Xavier x 5/3": (0.760, 0.650, 0.651, 0.652),
        "Kaiming normal": (0.721, 0.557, 0.557, 0.554),
        "orthogonal": (0.628, 0.229, 0.101, 0.0713),
    },
    "relu": {
        "N(0, 1)": (13, 8e11, math.nan, math.nan),
        "U(-1, 1)/sqrt(n)": (0.338, 1.0e-4, 3e-20, 9e-40),
        "PyTorch default": (0.339, 0.016, 0.016, 0.016),
        "Xavier uniform": (0.586, 0.025, 2.3e-8, 6e-16),
        "Xavier x 5/3": (0.977, 4.1, 2.9e3, 9.6e6),
        "Kaiming normal": (0.828, 0.708, 0.741, 0.402),
        "orthogonal": (0.826, 0.796, 0.605, 0.324),
    },
}
THEORY = {  # of tanh, computed independently
    "U(-1, 1)/sqrt(n)": (0.460, 2.99e-3, 8.6e-13, 1.0e-24),
    "Xavier uniform": (0.628, 0.2285, 0.1011, 0.0712),
    "Xavier x 5/3": (0.759, 0.651, 0.651, 0.651),
}
LAYERS = (1, 10, 50, 100)


def starts(width: int = 512):
    return {s.name: s for s in hundred_layers.starts(width)}


def test_all_initializers_are_there():
    assert list(starts()) == list(REFERENCE["tanh"])


@pytest.mark.parametrize("name", THEORY)
def test_theory_of_tanh(name):
    path = hundred_layers.predict(starts()[name], "tanh")
    for layer, value in zip(LAYERS, THEORY[name], strict=True):
        digits = len(f"{value:.4e}".partition("e")[0].replace(".", "").rstrip("0"))
        assert float(f"{path[layer - 1].std:.{digits - 1}e}") == pytest.approx(
            value, rel=1.01 * 10 ** (1 - digits)
        )


@pytest.mark.parametrize("activation", REFERENCE)
@pytest.mark.parametrize("name", REFERENCE["tanh"])
def test_reference_is_within_the_theory(activation, name):
    """The figures measured with torch.nn.init, rounded to their last digit, against our theory."""
    path = hundred_layers.predict(starts()[name], activation)
    for layer, value in zip(LAYERS, REFERENCE[activation][name], strict=True):
        if math.isfinite(value):
            expected = path[layer - 1]
            slack = rounding(value) / expected.log_error
            assert abs(expected.standard_errors(value)) < 3 + slack, (layer, value, expected)


def rounding(value: float) -> float:
    """Half a unit of the last digit written, as a relative error."""
    mantissa = f"{value:.10e}".partition("e")[0].rstrip("0")
    return 0.5 * 10.0 ** -len(mantissa.partition(".")[2]) / float(mantissa)


@pytest.mark.parametrize("name", REFERENCE["tanh"])
def test_measured_agrees_with_theory_in_small(name):
    size = hundred_layers.Size(128, 64, 15)
    start = starts(128)[name]
    measured = hundred_layers.measure(start, size)
    for activation, path in measured.items():
        expected = hundred_layers.predict(start, activation, size)
        for layer in (1, 5, 15):
            assert abs(expected[layer - 1].standard_errors(path.stds[layer - 1])) < 3, (
                activation,
                layer,
            )
        # A cosine of two of n independent coordinates has standard error 1/sqrt(n), fewer by pairs
        # and more by depth: one of it for every layer is an upper bound.
        assert abs(path.cosines[0] - expected[0].cosine) < 3 / math.sqrt(128)


def test_default_collapses_in_small():
    measured = hundred_layers.measure(
        starts(128)["PyTorch default"], hundred_layers.Size(128, 64, 25)
    )
    for path in measured.values():
        assert path.stds[-1] > 1e-2
        assert path.cosines[-1] > 0.999


@pytest.fixture(scope="module")
def full_comparison():
    return {c.start.name: c for c in hundred_layers.compare()}


@pytest.mark.slow
@pytest.mark.parametrize("activation", REFERENCE)
@pytest.mark.parametrize("name", REFERENCE["tanh"])
def test_100_layers_agrees_with_reference(full_comparison, activation, name):
    """Two independent networks differ by sqrt(2) standard errors; beside, the reference's rounding."""
    c = full_comparison[name]
    for layer, value in zip(LAYERS, REFERENCE[activation][name], strict=True):
        measured = c.measured[activation].stds[layer - 1]
        if not math.isfinite(value):
            assert not math.isfinite(measured)
            continue
        error = math.sqrt(2) * c.expected[activation][layer - 1].log_error
        assert abs(math.log(measured / value)) < 3 * error + rounding(value), (
            layer,
            measured,
            value,
        )


@pytest.mark.slow
def test_100_layers_similarity(full_comparison):
    """PyTorch's default maps every input to one output, Kaiming with ReLU nearly: cosine 0.991.

    The reference is one network, ours are four: Student's t with 3 degrees of freedom.
    """
    for path in full_comparison["PyTorch default"].measured.values():
        assert path.cosines[-1] > 0.9995
    kaiming = starts()["Kaiming normal"]
    size = hundred_layers.Size(batch=128)
    logs = torch.tensor(
        [
            math.log(1 - hundred_layers.measure(kaiming, size, seed=s)["relu"].cosines[-1])
            for s in range(4)
        ]
    )
    bound = stats.t.ppf(stats.norm.cdf(3), 3) * float(logs.std()) * math.sqrt(1 + 1 / 4)
    assert abs(math.log(1 - 0.991) - float(logs.mean())) < bound


# fan modes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", fan_modes.SHOWN_MODES)
def test_stack_follows_the_fans(mode):
    """Var z is a mean over O units that share one batch: its relative standard error is at most
    sqrt(k/O) with k = E u^4/(E u^2)^2 - 1 = 2 if all inputs were alike; backward O is fan_in."""
    steps = fan_modes.stack(mode, seed=0)
    for s in steps:
        assert abs(s.forward / s.forward_theory - 1) < 3 * math.sqrt(2 / s.fan.fan_out)
        assert abs(s.backward / s.backward_theory - 1) < 3 * math.sqrt(2 / s.fan.fan_in)


def test_what_each_mode_keeps():
    assert {s.forward_theory for s in fan_modes.stack("fan_in", seed=0)} == {1.0}
    assert {s.backward_theory for s in fan_modes.stack("fan_out", seed=0)} == {1.0}
    for s in fan_modes.stack("fan_avg", seed=0):
        assert (s.forward_theory - 1) * (s.backward_theory - 1) < 0


@pytest.mark.parametrize(("name", "make"), fan_modes.KERNELS, ids=[n for n, _ in fan_modes.KERNELS])
def test_exact_fans_give_one(name, make):
    """Var y is about a mean of squares of the weights times means of x^2 over the inputs that each
    output sees: relative variance 2/weights + 2 taps/outputs (neighbouring outputs share inputs)."""
    weight = make().weight
    taps = weight[0, 0].numel()
    exact, torch_ = (fan_modes.kernel(name, make, c, seed=0) for c in ("exact", "torch"))
    bound = 3 * math.sqrt(2 / weight.numel() + 2 * taps / (8 * 32 * 12**2))
    assert abs(exact.forward - 1) < bound
    assert abs(exact.backward - 1) < bound
    wrong_in, wrong_out = (
        exact.fan.fan_in / torch_.fan.fan_in,
        exact.fan.fan_out / torch_.fan.fan_out,
    )
    assert abs(torch_.forward / wrong_in - 1) < bound
    assert abs(torch_.backward / wrong_out - 1) < bound


# LeakyReLU -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", leaky_relu.SLOPES)
def test_leaky_relu_moments(slope):
    """E f^2 over n units: relative variance at most k/n a layer, k = 6 (1 + a^4)/(1 + a^2)^2 - 1."""
    n, depth = 256, 5
    case = leaky_relu.measure(slope, seed=0, width=n, batch=256, depth=depth)
    k = 6 * (1 + slope**4) / (1 + slope**2) ** 2 - 1
    for layer, second in enumerate(case.second_moments, 1):
        assert abs(second - case.second_theory) < 3 * math.sqrt(k * layer / n)
    assert case.second_theory == pytest.approx(1.0)
    # Var f <= E f^2 = 1, over at least n independent units.
    assert abs(float(case.activations.mean()) - case.mean_theory) < 3 / math.sqrt(n)


@pytest.mark.parametrize("slope", leaky_relu.SLOPES)
def test_leaky_relu_weights_are_uniform(slope):
    case = leaky_relu.measure(slope, seed=0, width=128, batch=2, depth=1)
    bound = nn.init.calculate_gain("leaky_relu", slope) * math.sqrt(3 / 128)
    assert case.bound == pytest.approx(bound)
    test = stats.kstest(case.weights.numpy(), stats.uniform(-bound, 2 * bound).cdf)
    assert test.pvalue > 0.003


@pytest.mark.parametrize("slope", leaky_relu.SLOPES)
def test_density_is_one(slope):
    """Its integral is 1, or 1/2 where the other half of the mass is at 0; its second moment is E f^2.

    The trapezoid rule errs by less than a step times the jump at 0.
    """
    case = leaky_relu.Case(slope, 1.0, torch.empty(0), torch.empty(0), ())
    at = torch.linspace(-14, 14, 1_400_001, dtype=torch.float64)
    density = leaky_relu.density(case, at)
    assert float(torch.trapezoid(density, at)) == pytest.approx(
        1.0 if slope else 0.5, abs=2e-5 * float(density.max())
    )
    assert float(torch.trapezoid(density * at**2, at)) == pytest.approx(1.0, abs=1e-5)


# the main demonstration ----------------------------------------------------------------------


def test_signals_are_one_per_activation(digits):
    network = main.Network("ReLU", 8, 16, nn.ReLU, steps=2)
    t = main.trial(network, main.FANIN, digits, seed=0, progress=silent)
    assert len(t.signals) == 7
    assert all(v is not None and 0 <= v <= 1.001 for v in t.correlation)
    assert "orthogonal" in t.plan


def test_default_is_found_out(digits):
    """30 default layers: gradients vanish (FAN102), inputs collapse (FAN104), though act rms is healthy."""
    network = main.Network("ReLU", 30, 64, nn.ReLU, steps=1)
    t = main.trial(network, main.DEFAULT, digits, seed=0, progress=silent)
    assert {"FAN102", "FAN104"} <= {f.code for f in t.findings}
    assert t.act_rms[-1] > 0.01
    assert main.trial(network, main.FANIN, digits, seed=0, progress=silent).findings == ()


@pytest.fixture(scope="module")
def full_main(tmp_path_factory):
    return experiments.run("main", out=tmp_path_factory.mktemp("main"))


@pytest.mark.slow
def test_main_separates_the_two(full_main):
    """The default's losses are at chance, ln 10, fanin's below 0.6 (tanh) and 1.2 (ReLU).

    At chance a network fits at most the class frequencies of the 10 steps averaged: E of the
    excess is (10 - 1)/(2 * 1280) = 0.004; biases that walk with the batches add at most as much
    again. Three times both: 0.025.
    """
    losses = {
        t.title.split(",")[0]: {r[0]: r[5] for r in t.rows}
        for t in full_main.tables
        if "training loss" in t.title
    }
    for name, limit in (("tanh", 0.6), ("ReLU", 1.2)):
        assert abs(losses[name]["default"] - math.log(10)) < 0.025
        assert losses[name]["fanin"] < limit


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_deep_tanh_trains_on_other_seeds(digits, seed):
    network = main.NETWORKS[0]
    with sandbox(seed, flush_denormal=True):
        t = main.trial(network, main.FANIN, digits, seed=seed, progress=silent)
    assert t.training.train_loss < 0.6
    assert t.training.test_accuracy > 0.85


@pytest.mark.slow
def test_gaussian_weights_of_the_same_variance_do_not_train(digits):
    """What the notes say: at 200 layers it is orthogonality, not the variance, that trains."""
    network = main.NETWORKS[0]
    with sandbox(0, flush_denormal=True):
        model = network.make(0)
        plan = initialize_(model, digits.x_train[:64])
        for row in plan:
            if len(row.shape) == 2:
                plan = plan.replace(row.name, Normal(row.std), "the same std without orthogonality")
        plan.fill_(model)
        done = _training.train(
            model,
            digits,
            lambda p: torch.optim.SGD(p, lr=main.LR, momentum=main.MOMENTUM),
            steps=network.steps,
            batch=main.BATCH,
            seed=0,
            progress=silent,
            label="",
        )
    assert done.train_loss > 1.7  # chance is 2.303; orthogonal weights end below 0.1


# convergence ---------------------------------------------------------------------------------

# Training losses of the 30-layer MLP on three seeds, measured with torch.nn.init.
MLP_LOSSES = {
    ("PyTorch default", "SGD"): (2.302, 2.302, 2.302),
    ("Kaiming", "SGD"): (1.94, 1.00, 2.29),
    ("orthogonal", "SGD"): (1.28, 1.34, 1.23),
    ("PyTorch default", "Adam"): (2.302, 2.302, 2.302),
    ("Kaiming", "Adam"): (0.075, 0.068, 0.077),
    ("orthogonal", "Adam"): (0.107, 0.087, 0.022),
}


@pytest.fixture(scope="module")
def full_convergence(digits):
    with sandbox(0, flush_denormal=True):
        return convergence.trials(digits, convergence.NETWORKS, seed=0, progress=silent)


@pytest.mark.slow
@pytest.mark.parametrize("case", MLP_LOSSES, ids=" ".join)
def test_convergence_agrees_with_reference(full_convergence, case):
    """One run against three: Student's t with 2 degrees of freedom, at the level of 3 sigma;
    0.02 beside it at chance, where three equal figures show no spread."""
    (t,) = [
        t
        for t in full_convergence
        if (t.start, t.optimizer) == case and t.network is convergence.NETWORKS[0]
    ]
    seen = torch.tensor(MLP_LOSSES[case])
    bound = stats.t.ppf(stats.norm.cdf(3), 2) * float(seen.std()) * math.sqrt(1 + 1 / 3) + 0.02
    assert abs(t.training.around(len(t.training.losses)) - float(seen.mean())) < bound


@pytest.mark.slow
def test_only_fanin_trains_everything(full_convergence):
    for t in full_convergence:
        if t.start == "PyTorch default":
            assert abs(t.training.train_loss - math.log(10)) < 0.025
        if t.start == "fanin auto":
            assert t.training.train_loss < 2.0


def test_starts_are_schemes(digits):
    """The default is left as constructed; the others are written by the plan of that name."""
    network = SMALL["convergence"]["networks"][0]
    for start, scheme in convergence.STARTS.items():
        torch.manual_seed(0)
        model = network.make()
        constructed = [p.clone() for p in model.parameters()]
        if scheme:
            initialize_(model, digits.x_train[:4], scheme=scheme)
        same = all(torch.equal(a, b) for a, b in zip(constructed, model.parameters(), strict=True))
        assert same == (start == "PyTorch default")


# examples and docs ---------------------------------------------------------------------------


def load_example(name: str) -> dict:
    scope: dict[str, object] = {"__name__": name}
    exec(
        compile((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), f"{name}.py", "exec"), scope
    )
    return scope


@pytest.mark.parametrize("factory", ["relu_mlp", "tanh_mlp", "convnet", "tiny_transformer"])
def test_targets_run_and_can_be_planned(factory):
    module, inputs = load_example("targets")[factory]()
    initialize_(module, inputs)
    output = module.eval()(inputs)
    assert torch.isfinite(output).all()


@pytest.mark.slow
def test_quick_start_learns(capsys):
    scope = load_example("deep_tanh")
    assert float(scope["loss"].detach()) < 0.6
    assert "edge of chaos" in capsys.readouterr().out


def test_docs_have_every_experiment():
    page = (EXAMPLES.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    for name in experiments.NAMES:
        assert f"$ fanin demo {name}" in page or (name == "main" and "$ fanin demo\n" in page)
