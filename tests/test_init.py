"""`fanin.init`: the drop-in for torch.nn.init, what it must share with it, and where it is right.

Bounds on sample moments are 5 standard errors: 6e-7 a comparison, and the seeds are fixed.
"""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as hooked_weight_norm

import fanin
import run_upstream_init_tests as upstream
from fanin import _init_support as support
from fanin import init
from fanin._errors import InvalidValueError, ModelError, UncoveredParameterError
from fanin.distributions import Constant

HERE = Path(__file__).parent
theirs = torch.nn.init

# function -> (shape, further arguments)
CALLS = {
    "uniform_": ((6, 4), ()),
    "normal_": ((6, 4), ()),
    "trunc_normal_": ((6, 4), ()),
    "constant_": ((6, 4), (0.3,)),
    "ones_": ((6, 4), ()),
    "zeros_": ((6, 4), ()),
    "eye_": ((6, 4), ()),
    "dirac_": ((6, 4, 3, 3), (2,)),
    "xavier_uniform_": ((6, 4, 3), ()),
    "xavier_normal_": ((6, 4), ()),
    "kaiming_uniform_": ((6, 4), ()),
    "kaiming_normal_": ((6, 4, 3, 3), ()),
    "orthogonal_": ((6, 4), ()),
    "sparse_": ((6, 4), (0.5,)),
    "variance_scaling_": ((6, 4), (2.0, "fan_avg", "truncated_normal")),
    "lecun_normal_": ((6, 4), ()),
    "lecun_uniform_": ((6, 4), ()),
    "delta_orthogonal_": ((6, 4, 3, 3), ()),
}
FIXED = ("constant_", "ones_", "zeros_", "eye_", "dirac_")
RANDOM = tuple(n for n in CALLS if n not in FIXED)
every = pytest.mark.parametrize("name", CALLS)
every_random = pytest.mark.parametrize("name", RANDOM)
every_torch = pytest.mark.parametrize("name", [n for n in CALLS if hasattr(theirs, n)])


def call(name, tensor=None, *, module=init, seed=None, **keywords):
    """Fill a tensor (a new one by default) by the function of that name."""
    shape, arguments = CALLS[name]
    tensor = torch.full(shape, 7.0) if tensor is None else tensor
    if seed is not None:
        torch.manual_seed(seed)
    return getattr(module, name)(tensor, *arguments, **keywords)


# the same as torch ---------------------------------------------------------------------------


def test_every_name_of_torch_is_here():
    public = [n for n in dir(theirs) if n.endswith("_") and not n.startswith("_")]  # __all__ is new
    assert set(getattr(theirs, "__all__", public)) <= set(init.__all__)
    assert all(callable(getattr(init, n)) for n in init.__all__)


@every_torch
def test_signatures_are_torchs_with_keywords_more(name):
    mine = inspect.signature(getattr(init, name)).parameters
    other = inspect.signature(getattr(theirs, name)).parameters
    more = ["reproducible", "name"] if name == "orthogonal_" else ["name"]
    assert list(mine) == [*other, *more]
    assert [mine[n].default for n in other] == [p.default for p in other.values()]
    assert [mine[n].kind for n in other] == [p.kind for p in other.values()]
    assert mine["name"].kind is inspect.Parameter.KEYWORD_ONLY


@every
def test_the_tensor_comes_back(name):
    tensor = nn.Parameter(torch.empty(CALLS[name][0]))
    assert call(name, tensor) is tensor
    assert tensor.requires_grad
    assert tensor.grad_fn is None


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_fixed_values_are_torchs(name, dtype):
    shape = CALLS[name][0]
    mine, other = (call(name, torch.full(shape, 7).to(dtype), module=m) for m in (init, theirs))
    assert mine.equal(other)


def test_any_constant_that_torch_writes():
    assert init.constant_(torch.empty(3), math.nan).isnan().all()
    assert init.constant_(torch.empty(3), -math.inf).eq(-math.inf).all()
    assert init.constant_(torch.empty(3, dtype=torch.int64), 2**60 + 1).eq(2**60 + 1).all()
    assert init.constant_(torch.empty(3, dtype=torch.complex64), 1 + 2j).eq(1 + 2j).all()
    assert init.zeros_(torch.eye(3).to_sparse()).to_dense().eq(0).all()


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5, 6)])
def test_fans_are_torchs(shape):
    tensor = torch.empty(shape)
    assert init._calculate_fan_in_and_fan_out(tensor) == theirs._calculate_fan_in_and_fan_out(
        tensor
    )
    for mode in ("fan_in", "FAN_OUT"):
        assert init._calculate_correct_fan(tensor, mode) == theirs._calculate_correct_fan(
            tensor, mode
        )


GAINS = [
    *[
        (n, p)
        for n in ("linear", "conv1d", "conv2d", "conv3d", "sigmoid", "tanh", "relu", "selu")
        for p in (None, 3.0)
    ],
    *[(f"conv_transpose{d}d", None) for d in (1, 2, 3)],
    *[("leaky_relu", p) for p in (None, 0, 0.2, 1, -3.5, 10)],
]


@pytest.mark.parametrize(("nonlinearity", "param"), GAINS)
def test_torchs_gains_bit_for_bit(nonlinearity, param):
    assert init.calculate_gain(nonlinearity, param) == theirs.calculate_gain(nonlinearity, param)


BAD = {
    "no such gain": lambda m: m.calculate_gain("gleu2"),
    "not a name": lambda m: m.calculate_gain(["relu"]),
    "slope True": lambda m: m.calculate_gain("leaky_relu", True),
    "slope text": lambda m: m.calculate_gain("leaky_relu", "x"),
    "mode": lambda m: m.kaiming_normal_(torch.empty(2, 2), mode="fan"),
    "fan mode": lambda m: m._calculate_correct_fan(torch.empty(2, 2), "fan"),
    "xavier 1-D": lambda m: m.xavier_uniform_(torch.empty(3)),
    "xavier empty 1-D": lambda m: m.xavier_uniform_(torch.empty(0)),
    "kaiming 0-D": lambda m: m.kaiming_uniform_(torch.empty(())),
    "eye 3-D": lambda m: m.eye_(torch.empty(2, 2, 2)),
    "sparse 1-D": lambda m: m.sparse_(torch.empty(2), 0.5),
    "dirac 2-D": lambda m: m.dirac_(torch.empty(2, 2)),
    "dirac groups": lambda m: m.dirac_(torch.empty(3, 2, 1), 2),
    "orthogonal 1-D": lambda m: m.orthogonal_(torch.empty(3)),
    "std": lambda m: m.normal_(torch.empty(3), std=-1.0),
    "std nan": lambda m: m.normal_(torch.empty(3), std=math.nan),
    "bounds": lambda m: m.uniform_(torch.empty(3), 1.0, 0.0),
    "infinite bound": lambda m: m.uniform_(torch.empty(3), 0.0, math.inf),
    "trunc bounds": lambda m: m.trunc_normal_(torch.empty(3), a=1.0, b=0.0),
    "gain": lambda m: m.xavier_normal_(torch.empty(2, 2), gain=-1.0),
    "integers": lambda m: m.normal_(torch.empty(3, dtype=torch.int64)),
    "lazy": lambda m: m.kaiming_normal_(nn.LazyLinear(3).weight),
    "lazy too": lambda m: m.normal_(nn.LazyLinear(3).weight),
    "expanded": lambda m: m.normal_(torch.empty(3).expand(2, 3)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_errors_are_caught_as_torchs(bad):
    """Whoever catches torch's type catches ours; where torch.nn.init itself speaks, ours says it too."""
    with pytest.raises(Exception) as expected:
        bad(theirs)
    with pytest.raises(type(expected.value)) as found:
        bad(init)
    assert isinstance(found.value, fanin.FaninError)
    if type(expected.value) is ValueError and "Lazy" not in str(expected.value):
        assert str(expected.value) in str(found.value)


def test_an_unknown_nonlinearity_lists_the_known_and_the_closest():
    with pytest.raises(
        InvalidValueError, match=r"known are linear, .*gelu.*mish.*Did you mean 'softplus'"
    ):
        init.calculate_gain("softpluss")


def test_what_is_not_a_tensor_is_refused():
    with pytest.raises(InvalidValueError, match=r"expected a torch.Tensor .* got \[1.0\]"):
        init.normal_([1.0])


def test_bad_arguments_leave_the_tensor_alone():
    for bad in (
        lambda t: init.normal_(t, std=-1.0),
        lambda t: init.variance_scaling_(t, -1.0),
        lambda t: init.variance_scaling_(t, mode="fan"),
        lambda t: init.variance_scaling_(t, distribution="cauchy"),
        lambda t: init.sparse_(t, 1.5),
        lambda t: init.orthogonal_(t, math.nan),
    ):
        tensor = torch.full((3, 3), 7.0)
        before = torch.get_rng_state()
        with pytest.raises(InvalidValueError):
            bad(tensor)
        assert tensor.eq(7.0).all()
        assert before.equal(torch.get_rng_state())


@pytest.mark.parametrize(
    "old", [n for n in dir(theirs) if not n.startswith("_") and hasattr(theirs, f"{n}_")]
)
def test_deprecated_aliases_warn_as_torchs(old):
    shape, arguments = CALLS[f"{old}_"]
    said = []
    for module in (init, theirs):
        with pytest.warns(FutureWarning) as caught:
            getattr(module, old)(torch.empty(shape), *arguments)
        assert caught[0].filename == __file__
        said.append(str(caught[0].message))
    assert said[0] == said[1]
    assert getattr(init, old).__name__ == old


SCALED = [n for n in CALLS if n.startswith(("xavier", "kaiming", "variance", "lecun"))]


@pytest.mark.parametrize("name", SCALED)
def test_an_empty_tensor_warns_where_the_user_called(name):
    with pytest.warns(
        UserWarning, match="^Initializing zero-element tensors is a no-op$"
    ) as caught:
        tensor = getattr(init, name)(torch.empty(0, 3))
    assert caught[0].filename == __file__
    assert tensor.shape == (0, 3)


def test_a_mean_far_from_the_bounds_warns_where_the_user_called():
    with pytest.warns(
        UserWarning, match=r"^mean is more than 2 std from \[a, b\] in nn.init.trunc_normal_"
    ) as caught:
        tensor = init.trunc_normal_(torch.empty(9), mean=9.0)
    assert caught[0].filename == __file__
    assert tensor.le(2.0).all()


def test_the_upstream_runner_changes_one_line():
    text = "import torch\nimport torch.nn.init as init\n\ninit.normal\n"
    assert upstream.rewritten(text) == "import torch\nimport fanin.init as init\n\ninit.normal\n"
    with pytest.raises(SystemExit, match="exactly one line"):
        upstream.rewritten("import torch\n")


# seeds ---------------------------------------------------------------------------------------


@every_random
def test_manual_seed_and_generators_govern(name):
    first, second = call(name, seed=42), call(name)
    assert first.equal(call(name, seed=42))
    assert not first.equal(second)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(42)
    assert first.equal(call(name, generator=generator))
    assert second.equal(call(name, generator=generator))
    assert before.equal(torch.get_rng_state())


@pytest.mark.parametrize("name", FIXED)
def test_fixed_values_draw_nothing(name):
    """Nor where the law is known from another fill."""
    fanin.fill_(torch.empty(3, 4), Constant(1.0), key="w")
    before = torch.get_rng_state()
    call(name)
    assert before.equal(torch.get_rng_state())


@every
def test_meta_tensors_draw_nothing_and_are_checked(name):
    shape, arguments = CALLS[name]
    before = torch.get_rng_state()
    tensor = torch.empty(shape, device="meta")
    assert getattr(init, name)(tensor, *arguments) is tensor
    assert before.equal(torch.get_rng_state())
    with torch.device("meta"):
        assert call(name, torch.empty(shape)).is_meta
    with pytest.raises(InvalidValueError):
        init.normal_(torch.empty(3, device="meta"), std=-1.0)


def test_the_seed_has_64_bits():
    """64 seeds: each of the 64 bits is seen in both states but for a chance of 64 * 2 * 2^-64."""
    seeds = [
        support.seed_for(torch.empty(1), ("Normal", [1.0, 0.0]), None).tolist() for _ in range(64)
    ]
    bits = np.array([[(low | high << 32) >> k & 1 for k in range(64)] for low, high in seeds])
    assert (bits.min(0) == 0).all()
    assert (bits.max(0) == 1).all()


# distributions -------------------------------------------------------------------------------

N = 256 * 192
# call -> scipy's law of one element of a (256, 192) tensor
LAWS = {
    "uniform": (lambda t: init.uniform_(t, -1.0, 3.0), stats.uniform(-1, 4)),
    "normal": (lambda t: init.normal_(t, 2.0, 0.5), stats.norm(2, 0.5)),
    "trunc_normal": (lambda t: init.trunc_normal_(t, 0.5, 2.0, -1.0, 2.0), stats.truncnorm(-0.75, 0.75, 0.5, 2)),
    "tail": (lambda t: init.trunc_normal_(t, a=4.0, b=1e4), stats.truncnorm(4, 1e4)),
    "xavier_uniform": (lambda t: init.xavier_uniform_(t, 2.0), stats.uniform(-2 * (6 / 448) ** 0.5, 4 * (6 / 448) ** 0.5)),
    "xavier_normal": (init.xavier_normal_, stats.norm(0, (2 / 448) ** 0.5)),
    "kaiming_uniform": (lambda t: init.kaiming_uniform_(t, mode="fan_out"), stats.uniform(-((6 / 256) ** 0.5), 2 * (6 / 256) ** 0.5)),
    "kaiming_normal": (lambda t: init.kaiming_normal_(t, 0.5), stats.norm(0, (2 / 1.25 / 192) ** 0.5)),
    "lecun_normal": (init.lecun_normal_, stats.norm(0, 192**-0.5)),
    "lecun_uniform": (init.lecun_uniform_, stats.uniform(-((3 / 192) ** 0.5), 2 * (3 / 192) ** 0.5)),
    "geometric": (lambda t: init.variance_scaling_(t, 3.0, "fan_geo_avg"), stats.norm(0, (3 / (192 * 256) ** 0.5) ** 0.5)),
    "truncated": (
        lambda t: init.variance_scaling_(t, distribution="truncated_normal"),
        stats.truncnorm(-2, 2, 0, 192**-0.5 / 0.87962566103423978),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
@pytest.mark.parametrize(("fill", "law"), LAWS.values(), ids=LAWS)
def test_distributions(fill, law):
    torch.manual_seed(11)
    values = fill(torch.empty(256, 192)).double().numpy().ravel()
    assert stats.kstest(values, law.cdf).pvalue > 1e-4
    standard_error = math.sqrt((law.stats("k") + 2) / 4 / N)  # of the sample std, relative
    assert abs(values.std() / law.std() - 1) < 5 * standard_error


def test_variance_scaling_orthogonal_has_the_std_it_says():
    torch.manual_seed(1)
    for shape in ((24, 12), (12, 24), (8, 6, 3, 3)):
        w = init.variance_scaling_(torch.empty(shape), 2.0, "fan_in", "orthogonal")
        assert w.square().mean().item() == pytest.approx(2.0 / math.prod(shape[1:]), rel=1e-5)


def test_orthogonal_and_delta_orthogonal():
    torch.manual_seed(1)
    for shape in ((20, 7), (7, 20), (5, 3, 3, 3)):
        w = init.orthogonal_(torch.empty(shape), 1.7).flatten(1).double()
        singular = torch.linalg.svdvals(w)
        assert torch.allclose(singular, torch.full_like(singular, 1.7), atol=1e-6)
    w = init.delta_orthogonal_(torch.empty(6, 4, 3, 5), 1.7).double()
    assert torch.allclose(
        w[:, :, 1, 2].T @ w[:, :, 1, 2], 1.7**2 * torch.eye(4).double(), atol=1e-6
    )
    assert torch.count_nonzero(w) == 24


ACTIVATIONS = {
    "gelu": nn.GELU(), "silu": nn.SiLU(), "swish": nn.SiLU(), "mish": nn.Mish(), "elu": nn.ELU(), "celu": nn.CELU(),
    "softplus": nn.Softplus(), "hardswish": nn.Hardswish(), "hardtanh": nn.Hardtanh(), "relu6": nn.ReLU6(),
    "prelu": lambda z: torch.where(z > 0, z, 0.25 * z), "rrelu": nn.RReLU().eval(), "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(), "logsigmoid": nn.LogSigmoid(), "hardsigmoid": nn.Hardsigmoid(),
    "hardshrink": nn.Hardshrink(), "softshrink": nn.Softshrink(), "threshold": nn.Threshold(0.0, 0.0),
    "identity": nn.Identity(),
}  # fmt: skip
KINKS = (-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_exact_gains_of_torchs_other_activations(name):
    """Against scipy's quadrature of torch's own function."""
    f = ACTIVATIONS[name]
    edges = (-12.0, *KINKS, 12.0)

    def integrand(z):
        with torch.no_grad():
            return (
                float(f(torch.tensor([z], dtype=torch.float64))) ** 2
                * math.exp(-z * z / 2)
                / math.sqrt(2 * math.pi)
            )

    second = sum(
        integrate.fixed_quad(np.vectorize(integrand), a, b, n=24)[0]
        for a, b in zip(edges, edges[1:], strict=False)
    )
    assert init.calculate_gain(name) == pytest.approx(second**-0.5, rel=1e-6)


def test_kaiming_takes_every_nonlinearity():
    torch.manual_seed(2)
    for nonlinearity in ("gelu", nn.SiLU(), torch.tanh):
        w = init.kaiming_normal_(torch.empty(256, 192), nonlinearity=nonlinearity)
        expected = init.calculate_gain(nonlinearity) / 192**0.5
        assert abs(w.std().item() / expected - 1) < 5 / math.sqrt(2 * N)
    with pytest.raises(InvalidValueError, match="not elementwise"):
        init.kaiming_normal_(torch.empty(2, 2), nonlinearity="softmax")


# dtypes and layouts --------------------------------------------------------------------------


@every_random
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_once(name, dtype):
    shape = CALLS[name][0]
    half, single = call(name, torch.empty(shape, dtype=dtype), seed=3), call(name, seed=3)
    assert half.equal(single.to(dtype))


@every
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn]
)
def test_other_dtypes(name, dtype):
    tensor = call(name, torch.empty(CALLS[name][0], dtype=dtype), seed=3)
    values = tensor.to(torch.complex64 if dtype.is_complex else torch.float32)
    assert values.isfinite().all()
    assert values.abs().sum() > 0 or name == "zeros_"
    if dtype.is_complex and name not in (*FIXED, "uniform_", "trunc_normal_"):
        assert values.imag.abs().sum() > 0


@pytest.mark.parametrize("name", SCALED)
def test_complex_variance_is_that_of_both_parts(name):
    torch.manual_seed(4)
    arguments = CALLS[name][1]
    real, both = (
        getattr(init, name)(torch.empty(128, 128, dtype=d), *arguments).abs().square().mean().item()
        for d in (torch.float64, torch.complex128)
    )
    # E|w|^2 of each has a relative standard error of at most sqrt(2 / 128^2) = .011.
    assert both == pytest.approx(real, rel=5 * 0.011 * math.sqrt(2))


@every
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_strides_change_nothing(name, data):
    shape = CALLS[name][0]
    order = data.draw(st.permutations(range(len(shape))))
    gap = data.draw(st.integers(1, 2))
    whole = torch.full([shape[d] for d in order[:-1]] + [shape[order[-1]] * gap], 7.0)
    strided = whole[..., ::gap].permute([order.index(d) for d in range(len(shape))])
    assert tuple(strided.shape) == shape
    assert call(name, strided, seed=5).equal(call(name, seed=5))
    if gap == 2:
        assert whole[..., 1::2].eq(7.0).all()


def test_views_of_parameters_are_written():
    w = nn.Parameter(torch.full((4, 6), 7.0))
    for part in w.chunk(2, dim=1):
        init.constant_(part, 5.0)
    assert w.eq(5.0).all()
    init.zeros_(w[0])
    init.constant_(w.t()[1], 2.0)
    init.normal_(w[2:4, 2:])
    init.ones_(w.data[1, 2:])
    assert w[0].eq(torch.tensor([0.0, 2, 0, 0, 0, 0])).all()
    assert w[1].eq(torch.tensor([5.0, 2, 1, 1, 1, 1])).all()
    assert not w[2:, 2:].eq(5.0).any()


def test_writing_is_seen_by_autograd():
    w = nn.Parameter(torch.ones(3))
    loss = w.square().sum()
    init.normal_(w)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# who else may take the call ------------------------------------------------------------------


class Watched(torch.Tensor):
    """Notes which functions of fanin.init are called with it."""

    seen: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "").endswith("init"):
            cls.seen.append((func, args, kwargs))
        return super().__torch_function__(func, types, args, kwargs or {})


def assert_watched(module, name):
    shape, arguments = CALLS[name]
    tensor = torch.full(shape, 7.0).as_subclass(Watched)
    Watched.seen = []
    function = getattr(module, name)
    assert function(tensor, *arguments) is tensor
    assert [f for f, _, _ in Watched.seen] == [function]
    _, args, kwargs = Watched.seen[0]
    assert args == ()
    parameters = inspect.signature(getattr(theirs, name, function)).parameters.values()
    assert list(kwargs) == [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


@every
def test_torch_function_takes_every_call(name):
    assert_watched(init, name)
    values = torch.full(CALLS[name][0], 7.0).as_subclass(Watched)
    assert call(name, values, seed=1).as_subclass(torch.Tensor).equal(call(name, seed=1))


@pytest.mark.parametrize(
    "name",
    [
        "trunc_normal_",
        "ones_",
        "zeros_",
        "eye_",
        "xavier_normal_",
        "kaiming_normal_",
        "orthogonal_",
    ],
)
def test_torch_still_overrides_four_alone(name):
    with pytest.raises(AssertionError):
        assert_watched(theirs, name)


@every
def test_fake_tensors(name):
    shape, arguments = CALLS[name]
    before = torch.get_rng_state()
    with FakeTensorMode() as mode:
        inside = nn.Parameter(torch.empty(shape))
        assert getattr(init, name)(inside, *arguments) is inside
    real = torch.full(shape, 7.0)
    assert call(name, mode.from_tensor(real)).shape == shape
    assert real.eq(7.0).all()
    assert before.equal(torch.get_rng_state())


def test_compiled_without_a_break_and_with_the_same_bits():
    """One graph of every function, twice each."""

    def all_twice(weights):
        drawn = []
        for name, w in weights.items():
            drawn += [getattr(init, name)(w, *CALLS[name][1]).clone() for _ in range(2)]
        return drawn

    torch._dynamo.reset()
    compiled = torch.compile(all_twice, fullgraph=True, backend="aot_eager")
    results = []
    for run in (compiled, all_twice):
        torch.manual_seed(6)
        weights = {n: nn.Parameter(torch.empty(shape)) for n, (shape, _) in CALLS.items()}
        drawn = [t.detach() for t in run(weights)]
        results.append(
            [(*drawn[2 * k : 2 * k + 2], weights[n].detach()) for k, n in enumerate(CALLS)]
        )
    for name, ours, eager in zip(CALLS, *results, strict=True):
        assert all(a.equal(b) for a, b in zip(ours, eager, strict=True)), name
        assert ours[0].equal(ours[1]) == (name in FIXED), name
        assert ours[1].equal(ours[2]), name


def test_compiled_with_symbolic_sizes_numbers_and_other_gains():
    def several(w, std):
        init.normal_(w[0], 0.0, std)
        init.kaiming_uniform_(w[1:], std)
        init.variance_scaling_(w[2:], std, "fan_geo_avg", "orthogonal")
        return init.kaiming_normal_(w[1:], nonlinearity="gelu")

    torch._dynamo.reset()
    compiled = torch.compile(several, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape, std in (((5, 4), 0.1), ((7, 6), 0.2), ((9, 5), 0.3)):
        results = []
        for run in (compiled, several):
            torch.manual_seed(7)
            run(w := torch.empty(shape), std)
            results.append(w)
        assert results[0].equal(results[1])


@pytest.mark.slow
def test_inductor_gives_the_same_bits():
    torch._dynamo.reset()
    compiled = torch.compile(lambda w: init.trunc_normal_(w), fullgraph=True)
    torch.manual_seed(8)
    a, b = compiled(torch.empty(6, 4)).clone(), compiled(torch.empty(6, 4)).clone()
    assert a.equal(call("trunc_normal_", seed=8))
    assert b.equal(call("trunc_normal_"))


@every_random
def test_vmap(name):
    shape, arguments = CALLS[name]

    def one(tensor):
        return getattr(init, name)(tensor, *arguments)

    batch = torch.func.vmap(one, randomness="different")(torch.empty(3, *shape))
    assert not batch[0].equal(batch[1])
    assert not batch[1].equal(batch[2])
    moved = torch.func.vmap(one, in_dims=1, randomness="same")(torch.empty(shape[0], 2, *shape[1:]))
    assert moved[0].equal(moved[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(one)(torch.empty(3, *shape))


def test_vmap_cannot_fill_what_the_examples_share():
    shared = torch.empty(3)
    with pytest.raises(ModelError, match="mapped"):
        torch.func.vmap(lambda x: x + init.normal_(shared), randomness="different")(
            torch.empty(2, 3)
        )


def test_make_fx_and_export_keep_the_draw_in_the_graph():
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(lambda w: init.normal_(w) * 1, tracing_mode="fake")(torch.empty(3, 4))
    assert not traced(torch.empty(3, 4)).equal(traced(torch.empty(3, 4)))


# modules -------------------------------------------------------------------------------------


def variances(module, x):
    """Var(y)/Var(x), and Var(gx)/Var(gy) per input element, away from the borders."""
    x.requires_grad_()
    y = module(x)
    inner = (slice(None), slice(None), *[slice(4, -4)] * (x.dim() - 2))
    (gx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    return y[inner].var().item(), gx[inner].var().item()


FANS = {
    "linear": (lambda: nn.Linear(300, 200, bias=False), (400, 300)),
    "conv": (lambda: nn.Conv2d(16, 24, 3, bias=False), (24, 16, 20, 20)),
    "strided": (lambda: nn.Conv2d(16, 24, 4, stride=2, bias=False), (24, 16, 26, 26)),
    "grouped": (lambda: nn.Conv2d(64, 64, 3, groups=8, bias=False), (12, 64, 20, 20)),
    "depthwise": (lambda: nn.Conv1d(256, 256, 9, groups=256, bias=False), (24, 256, 60)),
    "transposed": (lambda: nn.ConvTranspose2d(64, 8, 4, stride=2, bias=False), (24, 64, 16, 16)),
    "transposed grouped": (
        lambda: nn.ConvTranspose1d(64, 32, 6, stride=3, groups=4, bias=False),
        (32, 64, 40),
    ),
}


def owned(module, layer):
    """What the module under test takes: the layer if it can, else the layer's weight."""
    return layer if module is init else layer.weight


def spread(draws):
    """Mean of several draws of a variance ratio, and its standard error from their spread."""
    draws = np.array(draws)
    return draws.mean(), draws.std(ddof=1) / math.sqrt(len(draws))


def assert_unit_variance(module, kind, mode):
    make, shape = FANS[kind]
    found = []
    for seed in range(6):
        torch.manual_seed(seed)
        layer = make()
        module.kaiming_normal_(owned(module, layer), mode=mode, nonlinearity="linear")
        found.append(variances(layer, torch.randn(shape))[mode == "fan_out"])
    mean, error = spread(found)
    # The spread of 6 draws is itself uncertain: Student's t with 5 degrees of freedom, p = 1e-4.
    assert abs(mean - 1) < stats.t(5).isf(5e-5) * error
    assert error < 0.05


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("kind", FANS)
def test_exact_fans_keep_the_variance(kind, mode):
    assert_unit_variance(init, kind, mode)


@every
def test_a_module_comes_back_with_its_weight_filled(name):
    shape = CALLS[name][0]
    layer = (
        nn.Linear(4, 6)
        if len(shape) == 2
        else nn.Conv1d(4, 6, 3)
        if len(shape) == 3
        else nn.Conv2d(4, 6, 3)
    )
    arguments = () if name == "dirac_" else CALLS[name][1]
    before = layer.bias.detach().clone()
    torch.manual_seed(9)
    assert getattr(init, name)(layer, *arguments) is layer
    torch.manual_seed(9)
    assert layer.weight.equal(getattr(init, name)(torch.empty_like(layer.weight), *arguments))
    assert layer.bias.equal(before)


def test_packed_attention_is_drawn_as_three_matrices():
    torch.manual_seed(1)
    layer = init.xavier_normal_(nn.MultiheadAttention(192, 4), name="in_proj_weight")
    for part in layer.in_proj_weight.chunk(3):
        assert abs(part.std().item() * 192**0.5 - 1) < 5 / math.sqrt(2 * 192**2)
    init.orthogonal_(layer, name="in_proj_weight")
    for part in layer.in_proj_weight.chunk(3):
        assert torch.allclose(part @ part.T, torch.eye(192), atol=1e-5)
    init.zeros_(layer, name="out_proj.weight")
    assert layer.out_proj.weight.eq(0).all()


def test_recurrent_gates_are_orthogonal_each():
    layer = init.orthogonal_(nn.LSTM(3, 16), name="weight_hh_l0")
    gates = layer.weight_hh_l0.detach().chunk(4)
    for gate in gates:
        assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-6)
    assert not gates[0].equal(gates[1])


def test_groups_of_a_convolution():
    layer = init.orthogonal_(nn.Conv2d(8, 12, 1, groups=4), 2.0)
    for block in layer.weight.detach().flatten(1).chunk(4):
        assert torch.allclose(block.T @ block, 4.0 * torch.eye(2), atol=1e-5)
    layer, x = nn.Conv1d(6, 6, 3, groups=3, padding=1, bias=False), torch.randn(2, 6, 9)
    assert init.dirac_(layer)(x).equal(x)


@every
def test_the_padding_row_of_an_embedding_stays_zero(name):
    if len(CALLS[name][0]) != 2:
        return
    table = nn.Embedding(9, 4, padding_idx=5)
    assert getattr(init, name)(table, *CALLS[name][1]) is table
    assert table.weight[5].eq(0).all()
    assert table.weight.abs().sum() > 0 or name == "zeros_"


def parametrized(kind):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    if kind == "hooked":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates it; models still have it
            return hooked_weight_norm(layer)
    if kind == "orthogonal":
        return parametrizations.orthogonal(layer)
    return parametrizations.weight_norm(layer)


@pytest.mark.parametrize("kind", ["hooked", "weight_norm"])
def test_a_parametrized_weight_is_written_through(kind):
    layer = parametrized(kind)
    torch.manual_seed(1)
    init.kaiming_normal_(layer)
    layer(torch.ones(1, 8))  # hooks compute the weight when the layer runs
    torch.manual_seed(1)
    assert torch.allclose(layer.weight, init.kaiming_normal_(torch.empty(8, 8)), atol=1e-6)


def test_an_orthogonal_parametrization_takes_an_orthogonal_weight():
    layer = parametrized("orthogonal")
    torch.manual_seed(1)
    init.orthogonal_(layer)
    torch.manual_seed(1)
    assert torch.allclose(layer.weight, init.orthogonal_(torch.empty(8, 8)), atol=1e-5)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_parametrization_without_an_inverse_is_refused():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    before = layer.weight.detach().clone()
    with pytest.raises(ModelError, match="Doubled.*right_inverse"):
        init.normal_(layer)
    assert layer.weight.equal(before)


def test_modules_that_cannot_be_filled_say_why():
    with pytest.raises(InvalidValueError, match="has no parameter 'wieght'.*Did you mean 'weight'"):
        init.normal_(nn.Linear(2, 2), name="wieght")
    with pytest.raises(ModelError, match="lazy"):
        init.normal_(nn.LazyLinear(2))
    with pytest.raises(InvalidValueError, match="fewer than 2 dimensions"):
        init.kaiming_normal_(nn.Linear(2, 2), name="bias")

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 4))

    with pytest.raises(UncoveredParameterError, match=r"axes of Own.weight.*register_module"):
        init.kaiming_normal_(Own())
    assert init.normal_(Own()).weight.abs().min() > 0


# right where torch is wrong ------------------------------------------------------------------

CLAIMS = []


def claim(fails=AssertionError):
    """A statement about the module under test; torch.nn.init breaks it with ``fails``."""

    def add(check):
        CLAIMS.append(pytest.param(check, fails, id=check.__name__))
        return check

    return add


@claim()
def transposed_convolutions_keep_the_variance(module):
    assert_unit_variance(module, "transposed", "fan_in")


@claim()
def grouped_convolutions_keep_the_gradient(module):
    assert_unit_variance(module, "grouped", "fan_out")


@claim()
def a_weight_behind_a_parametrization_changes(module):
    layer = parametrized("weight_norm")
    before = layer.weight.detach().clone()
    module.ones_(owned(module, layer))
    assert not layer.weight.equal(before)


@claim(pytest.fail.Exception)
def a_computed_weight_is_refused(module):
    for tensor in (parametrized(k).weight for k in ("hooked", "weight_norm", "orthogonal")):
        with pytest.raises(ModelError, match="pass the module"):
            module.normal_(tensor)


@claim()
def the_padding_row_stays_zero(module):
    table = nn.Embedding(9, 4, padding_idx=5)
    module.normal_(owned(module, table))
    assert table.weight[5].eq(0).all()


@claim(pytest.fail.Exception)
def rows_picked_by_a_list_are_refused(module):
    w = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ModelError, match=r"w\[0:2\]"):
        module.constant_(w[[0, 1]], 7.0)


@claim()
def a_truncated_normal_takes_one_pass_and_no_memory(module):
    from torch.utils._python_dispatch import TorchDispatchMode

    class FullSize(TorchDispatchMode):
        passes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sized = [
                t for t in (*args, result) if isinstance(t, torch.Tensor) and t.numel() == 4096
            ]
            self.passes += bool(sized)
            return result

    with FullSize() as mode:
        module.trunc_normal_(torch.zeros(64, 64))
    assert mode.passes <= 2  # torch.zeros, and one write


@claim(RuntimeError)
def a_bound_may_be_infinite(module):
    values = module.trunc_normal_(torch.empty(1000), a=1.0, b=math.inf).numpy()
    assert stats.kstest(values, stats.truncnorm(1, math.inf).cdf).pvalue > 1e-4


@claim(ZeroDivisionError)
def a_std_of_zero_gives_the_mean(module):
    assert module.trunc_normal_(torch.empty(3), mean=0.5, std=0.0).eq(0.5).all()


@claim(Exception)
def a_truncated_normal_fills_fake_tensors(module):
    with FakeTensorMode():
        module.trunc_normal_(torch.empty(3, 4))


@claim(RuntimeError)
def a_truncated_normal_works_under_vmap(module):
    fill = torch.func.vmap(module.trunc_normal_, randomness="different")
    assert not torch.equal(*fill(torch.empty(2, 50)))


@claim(RuntimeError)
def a_truncated_normal_compiles(module):
    torch._dynamo.reset()
    fill = torch.compile(lambda w: module.trunc_normal_(w), fullgraph=True, backend="eager")
    assert fill(torch.full((3, 4), 7.0)).abs().max() <= 2


@claim()
def bfloat16_uniforms_are_unbiased(module):
    """Bound 1/sqrt(300), as of a Linear with 300 inputs; the mean's standard error is b/sqrt(3n)."""
    torch.manual_seed(0)
    n, bound = 2**20, 300**-0.5
    values = module.uniform_(torch.empty(n, dtype=torch.bfloat16), -bound, bound).double()
    assert abs(values.mean().item()) / bound < 5 / math.sqrt(3 * n)


@claim()
def sparse_zeros_come_from_the_generator(module):
    masks = [
        module.sparse_(torch.empty(40, 30), 0.5, generator=torch.Generator().manual_seed(3)) == 0
        for _ in range(2)
    ]
    assert torch.equal(*masks)
    assert masks[0].sum(0).eq(20).all()


def is_orthogonal(w, atol):
    w = w.flatten(1).to(torch.complex128 if w.is_complex() else torch.float64)
    return torch.allclose(w @ w.mH, torch.eye(len(w), dtype=w.dtype), atol=atol)


@claim(NotImplementedError)
def orthogonal_in_bfloat16(module):
    assert is_orthogonal(module.orthogonal_(torch.empty(8, 12, dtype=torch.bfloat16)), 2**-6)


@claim(NotImplementedError)
def orthogonal_in_float16(module):
    assert is_orthogonal(module.orthogonal_(torch.empty(8, 12, dtype=torch.float16)), 2**-9)


@claim(RuntimeError)
def orthogonal_and_complex_is_unitary(module):
    assert is_orthogonal(module.orthogonal_(torch.empty(8, 12, dtype=torch.complex64)), 1e-6)


@claim(RuntimeError)
def orthogonal_in_channels_last(module):
    weight = torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last)
    assert is_orthogonal(module.orthogonal_(weight), 1e-6)


@claim(ZeroDivisionError)
def xavier_of_nothing_does_nothing(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert module.xavier_normal_(torch.empty(0, 0)).shape == (0, 0)


@claim()
def a_lazy_parameter_says_what_to_do(module):
    with pytest.raises(RuntimeError) as error:
        module.kaiming_normal_(nn.LazyLinear(3).weight)
    assert "lazy" in str(error.value)
    assert "Run the model once" in str(error.value)


@claim(NotImplementedError)
def float8_is_drawn(module):
    values = module.normal_(torch.empty(2000, dtype=torch.float8_e4m3fn)).float()
    assert abs(values.std().item() - 1) < 5 / math.sqrt(4000) + 2**-5


@claim(ValueError)
def every_activation_has_a_gain(module):
    assert module.calculate_gain("gelu") == pytest.approx(1.5335, abs=1e-4)


@claim()
def strides_do_not_change_the_draw(module):
    results = []
    for tensor in (torch.empty(40, 30), torch.empty(30, 40).t()):
        torch.manual_seed(0)
        results.append(module.normal_(tensor))
    assert torch.equal(*results)


@pytest.mark.parametrize(("check", "fails"), CLAIMS)
def test_right_where_torch_is_wrong(check, fails):
    check(init)


@pytest.mark.parametrize(("check", "fails"), CLAIMS)
def test_torch_is_still_wrong(check, fails):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(fails):
            check(theirs)


def test_the_interval_of_a_truncated_normal_that_torch_never_finishes():
    """a=1, b=1e4: torch's loop accepts one candidate in 6 * 10^4, for every element at once."""
    values = init.trunc_normal_(torch.empty(1000), a=1.0, b=1e4).numpy()
    assert stats.kstest(values, stats.truncnorm(1, 1e4).cdf).pvalue > 1e-4


def on_dtensors(module, rank):
    command = [sys.executable, str(HERE / "init_on_dtensors.py"), module, str(rank)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("rank", [1, *(pytest.param(r, marks=pytest.mark.slow) for r in (0, 2, 3))])
def test_dtensors_hold_their_slice_of_the_single_device_values(rank):
    found = on_dtensors("fanin.init", rank)
    assert found.pop("rows") == "ModelError"
    assert len(found) == 6 * 12 + 5
    assert set(found.values()) == {"equal"}


@pytest.mark.slow
def test_torch_draws_the_same_shard_on_every_rank():
    found = on_dtensors("torch.nn.init", 1)
    assert found["zeros_ S(0)"] == "equal"
    assert found["normal_ S(0)"] == found["eye_ S(0)"] == found["dirac_ S(0)"] == "differs"
    assert found["sparse_ S(0)"] == "RuntimeError"
