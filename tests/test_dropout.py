"""`fanin.nn.Dropout`: the law of its masks, the kernels, torch's transforms, checkpoints and state dicts."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fanin
from fanin import InvalidValueError, _dropout_op
from fanin._rng import backend, masks
from fanin._rng import dropout as kernels
from fanin._rng.philox import philox
from fanin._rng.stream import Stream
from fanin.nn import Dropout, dropout, name_dropouts_
from golden.make_dropout import dropped

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dropout.json").read_text("utf-8"))["cases"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [0, 1, 2, 63, 64, 127, 128, 129, 1000, 4097]
LONG = 3 * 2**16 + 77  # several parts of several threads, and a rest


@pytest.fixture
def kernel(monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.delenv(backend.PORTABLE, raising=False)
    monkeypatch.setattr(kernels, "LOADING_PAYS", 0)
    monkeypatch.setattr(kernels, "SHARED_FROM", 2**16)


@pytest.fixture(params=["kernel", "portable"])
def way(request, monkeypatch):
    if request.param == "kernel":
        request.getfixturevalue("kernel")
    else:
        monkeypatch.setenv(backend.PORTABLE, "1")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor


def by_definition(seed, name, step, element):
    """The 32 bits of one element, from Philox alone, as docs/nn.md says it."""
    k0, k1, s2, s3 = Stream(f"{name}/dropout", seed).words
    tile, half, place = element >> 7, (element >> 6) & 1, element & 63
    lane, block = place >> 4, 16 * tile + (place & 15)

    def word(top):
        counter = (np.array([w], np.uint64) for w in (block, step, s2, top))
        return int(philox(tuple(counter), (k0, k1))[lane][0]) >> (16 * half) & 0xFFFF

    return word(s3) << 16 | word(s3 | 0x80000000)


def kept(count, p, *, seed=1, name="", step=0):
    return dropout(torch.ones(count), p, seed=seed, name=name, step=step) != 0


# The law


@pytest.mark.parametrize("element", [0, 15, 16, 63, 64, 127, 128, 1000, 2**31 + 77, 2**35 - 1])
def test_the_law_word_by_word(element):
    """The threshold equal to an element's number drops it, the next one keeps it."""
    number = by_definition(3, "h.0.drop", 5, element)
    words = masks.stream_words("h.0.drop", 3)
    tile, place = np.array([element >> 7], np.uint64), element & 127
    assert not masks.keep(words, 5, tile, number)[0, place]
    assert masks.keep(words, 5, tile, number + 1)[0, place]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['name']}-{c['p']}-{c['dtype']}")
def test_golden(case, way):
    """The mapping never changes under its name."""
    made = dropped(case)
    assert made == {k: case[k] for k in made}


def test_thresholds():
    assert masks.threshold(0.0) == 2**32 - 1
    assert masks.threshold(1.0) == 0
    assert masks.threshold(0.75) == 2**30
    for p in np.random.default_rng(0).random(100):
        assert abs(masks.threshold(p) / 2**32 - (1 - p)) <= 2**-33


def test_torch_gives_the_law_too():
    """As on devices that have no kernel: int64 arithmetic of torch's."""
    words = masks.stream_words("a", 2**64 - 1)
    for threshold in (0, 2**31, 2**32 - 1, by_definition(2**64 - 1, "a", 2**32 - 1, 700) + 1):
        expected = masks.keep(words, 2**32 - 1, np.arange(40, dtype=np.uint64), threshold)
        found = masks.keep(words, 2**32 - 1, torch.arange(40), threshold, torch)
        assert np.array_equal(found.numpy(), expected)


# Kernels


def everything(size, dtype):
    """Numbers of every size, subnormal and infinite ones too."""
    pick = np.random.default_rng(size)
    x = torch.from_numpy(pick.standard_normal(size) * 10.0 ** pick.integers(-9, 9, size)).to(dtype)
    special = [math.inf, -math.inf, math.nan, 0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 4, 1.0]  # fmt: skip
    for i, number in enumerate(special[: size // 8]):
        x[i * 8 :: 61] = number
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, LONG])
@pytest.mark.parametrize("count", [1, 2])
def test_kernels_are_the_specification(dtype, size, count, kernel, threads):
    threads(count)
    x = everything(size, dtype)
    found = dropout(x, 0.3, seed=9, name="b", step=4)
    words = masks.stream_words("b", 9)
    tiles = np.arange(-(-size // 128), dtype=np.uint64)
    mask = torch.from_numpy(masks.keep(words, 4, tiles, masks.threshold(0.3)).reshape(-1)[:size])
    real = x if dtype == torch.float64 else x.float()
    expected = torch.where(mask, real * (1 / (1 - 0.3)), 0.0).to(dtype)
    same = bits(found) == bits(expected)
    if size:  # which NaN a NaN becomes is the processor's affair
        nan = torch.isnan(expected)
        assert torch.equal(torch.isnan(found), nan)
        assert same.view(size, -1)[~nan].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_settle_ties(dtype, kernel):
    """A threshold that shares its upper half with many numbers: 65 536 elements have one tie on average."""
    size = 2**19
    number = by_definition(9, "", 0, 12345)
    for threshold in (number, number + 1, number & 0xFFFF0000, number | 0xFFFF):
        mask = kernels.Mask(masks.stream_words("", 9), 0, threshold, 1.0)
        x, y = torch.ones(size, dtype=dtype), torch.empty(size, dtype=dtype)
        name = _dropout_op.DTYPES[dtype]
        assert mask.into(x.data_ptr(), y.data_ptr(), size, name, threads=1)
        assert np.array_equal((y != 0).numpy(), mask.keep(0, size))
    assert mask.keep(0, size)[12345]


@pytest.mark.parametrize("cpu", ["x86-64", "haswell", "skylake-avx512"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_processors(cpu, dtype, kernel):
    import llvmlite.binding as llvm

    from fanin._rng.machine import Machine, this_machine
    from fanin._rng.mask_kernel import kernel as compiled

    if not llvm.get_process_triple().startswith("x86_64"):
        pytest.skip("for x86")
    if cpu == "skylake-avx512" and "+avx512bw" not in this_machine().features:
        pytest.skip("needs AVX-512")
    run, code = compiled(dtype, Machine(cpu, ""))
    assert kernels._agrees(run, dtype)
    del code


def test_a_kernel_that_errs_is_not_used(monkeypatch, kernel):
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(kernels, "_agrees", lambda *_: False)
    with pytest.warns(RuntimeWarning, match="other elements"):
        found = dropout(torch.ones(1000), 0.5, seed=1)
    assert torch.equal(found != 0, kept(1000, 0.5))


def test_kernels_are_made_when_it_pays(monkeypatch):
    monkeypatch.delenv(backend.PORTABLE, raising=False)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(kernels, "_asked", {})
    dropout(torch.ones(100), seed=1)
    assert kernels._loaded == {}


@pytest.mark.parametrize(
    "view",
    [
        lambda n: torch.ones(n, n).T,
        lambda n: torch.ones(n, n, 2)[..., 1],
        lambda n: torch.ones(1, n).expand(n, n),
        lambda n: torch.ones(1, n, n // 2, 2).contiguous(memory_format=torch.channels_last).view(1, n, n // 2, 2),
    ],
)  # fmt: skip
def test_strides_do_not_matter(view, way):
    x = view(66)
    found = dropout(x, 0.4, seed=3)
    assert torch.equal(found, dropout(x.contiguous(), 0.4, seed=3))
    assert found.stride() == torch.empty_like(x).stride()


def test_negated_views(way):
    x = torch.complex(torch.randn(50), torch.randn(50)).conj().imag
    assert x.is_neg()
    assert torch.equal(dropout(x, 0.4, seed=3), dropout(x.clone(), 0.4, seed=3))


def test_a_longer_tensor_begins_with_the_shorter_one(way):
    assert torch.equal(kept(LONG, 0.3)[:1000], kept(1000, 0.3))


def test_a_greater_p_keeps_fewer_of_the_same(way):
    assert not (kept(5000, 0.6) & ~kept(5000, 0.5)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_dropped_is_zero_even_of_nan(dtype, way):
    x = torch.full((1000,), math.nan, dtype=dtype)
    y = dropout(x, 0.5, seed=1)
    assert torch.equal(y == 0, ~kept(1000, 0.5))
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))


# Statistics. A sum of n independent bits of probability q has std sqrt(n q (1 - q)): 5 of those, so that a
# right generator fails once in 1.7 million comparisons; the seeds are fixed.


def within(count, n, q):
    return abs(count - n * q) <= 5 * math.sqrt(n * q * (1 - q))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_the_rate(p, kernel):
    n = 2**22
    assert within(int(kept(n, p).sum()), n, 1 - p)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_independence(p, kernel):
    """Of two masks both keep as often as chance has it: steps, layers, seeds; elements some way apart."""
    n, q = 2**20, (1 - p) ** 2
    a = kept(n, p)
    others = {"step": 1, "name": "h.1", "seed": 2}
    for what, value in others.items():
        b = kept(n, p, **{what: value})
        assert within(int((a & b).sum()), n, q), what
    for lag in (1, 2, 15, 16, 17, 32, 48, 63, 64, 65, 127, 128, 129, 1024, 4096):
        # Products at one lag share elements; in pairs of their covariances the variance is at most doubled.
        agree = int((a[lag:] & a[:-lag]).sum())
        m = n - lag
        assert abs(agree - m * q) <= 5 * math.sqrt(m * (q * (1 - q) + 2 * (1 - p) ** 3 * p)), lag


def test_every_column_of_a_tile_and_every_step(kernel):
    n = 2**12
    by_step = torch.stack([kept(1280, 0.5, step=s) for s in range(n)])
    counts = by_step.view(n * 10, 128).sum(0)
    assert all(within(int(c), 10 * n, 0.5) for c in counts)
    assert len({tuple(r.tolist()) for r in by_step[:, :64]}) == n


# Derivatives


def test_gradients_of_first_and_second_order(way):
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)

    def f(x):
        return dropout(x, 0.4, seed=1)

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: f(x) ** 3, x)


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_has_the_mask(p, dtype, way):
    x = torch.ones(300, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    (g,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(g, y)
    (g,) = torch.autograd.grad(Dropout(p)(x).sum(), x)  # a gradient that is expanded
    assert g.shape == x.shape


def test_torch_func():
    def f(x):
        return dropout(x, 0.5, seed=1)

    ones = torch.ones(3, 8)
    mask = 2.0 * kept(8, 0.5)
    g = torch.func.grad(lambda x: f(x).square().sum())
    assert torch.equal(g(ones[0]), 2 * mask**2)
    assert torch.equal(torch.func.vmap(g)(ones), (2 * mask**2).expand(3, 8))
    assert torch.equal(torch.func.hessian(lambda x: f(x).square().sum())(ones[0]), torch.diag(2 * mask**2))  # fmt: skip
    assert torch.equal(torch.func.jvp(f, (ones[0],), (3 * ones[0],))[1], 3 * mask)
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(ones[0], 3 * ones[0]))
        assert torch.equal(forward_ad.unpack_dual(y).tangent, 3 * mask)


def test_vmap_follows_its_randomness():
    x = torch.ones(3, 1000)
    same = torch.func.vmap(dropout, randomness="same")(x)
    different = torch.func.vmap(dropout, randomness="different")(x)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    assert 300 < int((different[0] == different[1]).sum()) < 700  # 500 +- 13 sigmas
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(dropout)(x)


# The layer


def network(seed=None):
    torch.manual_seed(0)
    layers = nn.Linear(16, 32), Dropout(0.3), nn.ReLU(), Dropout(0.2)
    return name_dropouts_(nn.Sequential(*layers), seed=seed)


def test_evaluation_returns_the_argument(way):
    x = torch.ones(8)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert dropout(x, 0.5, training=False) is x
    seeded = Dropout(0.5, seed=1).eval()
    seeded(x)
    assert seeded.step == 0


def test_torchs_generator_governs(way):
    layer, x = Dropout(), torch.ones(100)
    torch.manual_seed(3)
    first = [layer(x), layer(x)]
    torch.manual_seed(3)
    assert all(torch.equal(layer(x), y) for y in first)
    assert not torch.equal(*first)
    torch.manual_seed(3)
    key = _dropout_op.as_tensor(_dropout_op.random_key(x))
    assert torch.equal(torch.ops.fanin.dropout(x, key, "", 0.5), first[0])


def test_a_seed_governs_and_leaves_torchs_generator(way):
    layer, x = Dropout(0.5, seed=5, name="a"), torch.ones(100, requires_grad=True)
    before = torch.get_rng_state()
    found = [layer(x) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.step == 3
    for step, y in enumerate(found):
        assert torch.equal(y, dropout(x, 0.5, seed=5, name="a", step=step))


def test_names():
    model = nn.ModuleDict({"a": Dropout(), "b": nn.Sequential(nn.ReLU(), Dropout(0.2))})
    assert name_dropouts_(model, seed=2**64 - 1) is model
    assert (model["a"].name, model["b"][1].name) == ("a", "b.1")
    assert model["b"][1].seed == 2**64 - 1
    x = torch.ones(500)
    found = model["b"][1](x)
    assert torch.equal(found, dropout(x, 0.2, seed=2**64 - 1, name="b.1"))
    assert not torch.equal(found, dropout(x, 0.2, seed=2**64 - 1, name="a"))
    wrapped = name_dropouts_(torch.compile(network()))
    assert wrapped._orig_mod[1].name == "1"
    assert repr(model["b"][1]) == f"Dropout(p=0.2, seed={2**64 - 1}, name='b.1')"
    assert repr(Dropout()) == "Dropout(p=0.5)"


def test_state_dicts():
    model, x = network(seed=4), torch.randn(3, 16)
    model(x)
    state = model.state_dict()
    assert {k for k in state if "weight" not in k and "bias" not in k} == {"1.step", "3.step"}
    ahead = model(x)
    assert int(state["1.step"]) == 1  # a copy
    resumed = network(seed=4)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(x), ahead)
    torchs = {k: v for k, v in state.items() if "step" not in k}
    assert resumed.load_state_dict(torchs) == ([], [])
    assert resumed[1].step == 2
    plain = network()
    assert set(plain.state_dict()) == set(torchs)
    assert plain.load_state_dict(state) == ([], [])
    with pytest.raises(RuntimeError, match="Unexpected"):
        plain.load_state_dict({**state, "1.other": torch.ones(1)})


def test_copies_count_for_themselves(tmp_path):
    layer, x = Dropout(seed=1), torch.ones(100)
    layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    layer(x)
    assert (layer.step, twin.step) == (3, 2)
    torch.save(twin, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    assert torch.equal(loaded(x), twin(x))


def test_the_counter_stays_where_it_is():
    with torch.device("meta"):
        layer = Dropout(seed=1)
    assert layer.to_empty(device="cpu").double().half().step == 0
    assert list(layer.buffers()) == []
    assert layer(torch.empty(3, device="meta")).is_meta


@pytest.mark.parametrize("seed", [None, 6])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(seed, use_reentrant, way):
    """Two calls before one backward pass: each is run again with its own mask."""

    def gradient(run):
        model = network(seed)
        x = torch.ones(5, 16, requires_grad=True)
        torch.manual_seed(1)
        a, b = run(model, x), run(model, x)
        (a.square().sum() + 3 * b.square().sum()).backward()
        return a.detach(), b.detach(), x.grad, model[0].weight.grad, model[1].step

    plain = gradient(lambda model, x: model(x))
    again = gradient(lambda model, x: checkpoint(model, x, use_reentrant=use_reentrant))
    assert not torch.equal(plain[0], plain[1])
    assert all(torch.allclose(a, b) for a, b in zip(plain[:4], again[:4], strict=True))
    assert plain[4] == again[4] == (0 if seed is None else 2)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_that_forget_the_generator_are_refused(use_reentrant):
    x = torch.ones(5, 16, requires_grad=True)
    y = checkpoint(network(6), x, use_reentrant=use_reentrant, preserve_rng_state=False)
    with pytest.raises(fanin.ModelError, match="preserve_rng_state"):
        y.sum().backward()


def test_steps_are_remembered_for_a_while(monkeypatch):
    monkeypatch.setattr(_dropout_op, "REMEMBERED", 10)
    monkeypatch.setattr(_dropout_op, "_steps", type(_dropout_op._steps)())
    layer = Dropout(seed=1)
    with torch.no_grad():
        for _ in range(30):
            layer(torch.ones(3))
    assert list(_dropout_op._steps.values()) == list(range(20, 30))


@pytest.mark.parametrize("seed", [None, 6])
def test_compile(seed):
    torch._dynamo.reset()
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model, eager = network(seed), network(seed)
    compiled = torch.compile(model, fullgraph=True, backend=counted)
    x = torch.ones(5, 16, requires_grad=True)
    for turn in range(4):
        torch.manual_seed(turn)
        y = compiled(x)
        (g,) = torch.autograd.grad(y.square().sum(), x)
        torch.manual_seed(turn)
        z = eager(x)
        (h,) = torch.autograd.grad(z.square().sum(), x)
        assert torch.allclose(y, z)
        assert torch.allclose(g, h)
    assert counted.frame_count == 1
    assert torch.allclose(compiled.eval()(x), eager.eval()(x))
    assert model[1].step == eager[1].step == (0 if seed is None else 4)


def test_a_compiled_part_of_a_checkpoint():
    torch._dynamo.reset()
    model, eager = network(6), network(6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.ones(5, 16, requires_grad=True)
    a, b = (checkpoint(compiled, x, use_reentrant=False) for _ in range(2))
    (g,) = torch.autograd.grad((a + 3 * b).square().sum(), x)
    c, d = eager(x), eager(x)
    (h,) = torch.autograd.grad((c + 3 * d).square().sum(), x)
    assert torch.allclose(a, c)
    assert torch.allclose(g, h)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("seed", [None, 6])
def test_a_checkpoint_within_what_is_compiled(seed, calls):
    torch._dynamo.reset()
    model, eager = network(seed), network(seed)
    x = torch.ones(5, 16, requires_grad=True)

    def within(x):
        return sum(checkpoint(model, x, use_reentrant=False) for _ in range(calls))

    compiled = torch.compile(within, fullgraph=True, backend="aot_eager")
    for turn in range(3):
        torch.manual_seed(turn)
        y = compiled(x)
        (g,) = torch.autograd.grad(y.square().sum(), x)
        torch.manual_seed(turn)
        z = sum(eager(x) for _ in range(calls))
        (h,) = torch.autograd.grad(z.square().sum(), x)
        assert torch.allclose(y, z)
        assert torch.allclose(g, h)


@pytest.mark.slow
def test_inductor():
    torch._dynamo.reset()
    model, eager = network(6), network(6)
    x = torch.randn(5, 16)
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(3):
        assert torch.allclose(compiled(x), eager(x), atol=1e-6)


@pytest.mark.parametrize("seed", [None, 6])
@pytest.mark.parametrize("training", [True, False])
def test_export(seed, training):
    model, eager = (network(seed).train(training) for _ in range(2))
    x = torch.ones(5, 16)
    exported = torch.export.export(model, (x,)).module()
    assert model[1].step == 0
    for turn in range(2):
        torch.manual_seed(turn)
        y = exported(x)
        torch.manual_seed(turn)
        assert torch.allclose(y, eager(x))


def test_symbolic_tracing_keeps_the_calls():
    traced = torch.fx.symbolic_trace(network())
    torch.manual_seed(1)
    y = traced(torch.ones(5, 16))
    torch.manual_seed(1)
    assert torch.equal(y, network_after_seed(1)(torch.ones(5, 16)))
    assert not torch.equal(y, traced(torch.ones(5, 16)))


def network_after_seed(seed):
    model = network()
    torch.manual_seed(seed)
    return model


def test_the_operators_are_as_torch_wants_them():
    key = torch.tensor([-5, 3])
    for x in (torch.randn(20, requires_grad=True), torch.randn(4, 6).T, torch.empty(0)):
        torch.library.opcheck(torch.ops.fanin.dropout, (x, key, "a", 0.3))
    torch.library.opcheck(torch.ops.fanin.dropout_key, (torch.tensor([1, 2]), "a"))


@pytest.mark.parametrize("seed", [None, 6])
def test_analysis_sees_dropout(seed):
    """Plans and predictions are those of torch's layer, and leave the counter alone."""

    def net(layer):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), layer, nn.Linear(32, 8))

    x = torch.randn(64, 32)
    ours, torchs = net(Dropout(0.3, seed=seed)), net(nn.Dropout(0.3))
    assert fanin.plan(ours, x) == fanin.plan(torchs, x)
    assert str(fanin.check(ours, x)) == str(fanin.check(torchs, x))
    fanin.probe(ours, x, loss_fn=lambda y: y.square().mean())
    assert ours[2].step == 0


# Errors


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan, math.inf, "0.5", True])
def test_no_such_probability(p):
    for make in (Dropout, lambda p: dropout(torch.ones(3), p)):
        with pytest.raises(InvalidValueError, match="^p must"):
            make(p)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_no_such_seed(seed):
    for make in (Dropout, lambda **k: dropout(torch.ones(3), **k)):
        with pytest.raises(InvalidValueError, match="seed must"):
            make(seed=seed)


@pytest.mark.parametrize("step", [-1, 2**32, 0.5])
def test_no_such_step(step):
    with pytest.raises(InvalidValueError, match="step must"):
        dropout(torch.ones(3), seed=1, step=step)


def test_the_last_step():
    layer = Dropout(seed=1).seed_(1, step=2**32 - 1)
    layer(torch.ones(3))
    with pytest.raises(InvalidValueError, match="another seed"):
        layer(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_no_such_dtype(dtype):
    with pytest.raises(InvalidValueError, match="float32"):
        dropout(torch.ones(3, dtype=dtype))


def test_too_many_elements():
    with pytest.raises(InvalidValueError, match=r"2\*\*35"):
        dropout(torch.empty(2**35 + 1, device="meta"))
