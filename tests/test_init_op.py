"""The operator behind `fanin.init`, and the short way around it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fanin import InvalidValueError, _fill, _init_op, init
from fanin._rng import backend

RANDOM = {
    "normal_": (0.1, 0.5),
    "uniform_": (-0.2, 0.4),
    "trunc_normal_": (0.0, 1.0, -2.0, 2.0),
    "kaiming_normal_": (),
    "kaiming_uniform_": (),
    "xavier_normal_": (),
    "lecun_normal_": (),
    "variance_scaling_": (1.0, "fan_in", "truncated_normal"),
}


@pytest.fixture(autouse=True)
def _kernels_at_once(monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.delenv(backend.PORTABLE, raising=False)
    monkeypatch.setattr(_fill, "_known", {})


@pytest.fixture
def puts(monkeypatch):
    """Whether each call took the short way."""
    found = []
    short = _init_op.put_at_once

    def counted(*arguments):
        found.append(short(*arguments))
        return found[-1]

    monkeypatch.setattr("fanin._init_support.put_at_once", counted)
    return found


def filled(name, tensor=None, generator=None):
    torch.manual_seed(7)
    tensor = torch.empty(6, 5) if tensor is None else tensor
    getattr(init, name)(tensor, *RANDOM[name], generator=generator)
    return tensor.detach()


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_short_way_gives_the_same_bits_and_takes_the_same_words(name, dtype, puts):
    expected, after = filled(name, torch.empty(6, 5, dtype=dtype)), torch.get_rng_state()
    for tensor in (torch.empty(6, 5, dtype=dtype), torch.nn.Parameter(torch.empty(6, 5, dtype=dtype))):  # fmt: skip
        assert torch.equal(filled(name, tensor), expected)
        assert torch.equal(torch.get_rng_state(), after)
    assert puts == [False, True, True]


def test_a_generator_governs_and_moves(puts):
    generator = torch.Generator().manual_seed(3)
    first = [filled("normal_", generator=generator) for _ in range(3)]
    generator.manual_seed(3)
    before = torch.get_rng_state()
    _fill._known.clear()
    second = [filled("normal_", generator=generator) for _ in range(3)]
    assert puts == [False, True, True] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own stood still


class Seen(TorchDispatchMode):
    """The names of the operators that torch ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operator(puts):
    expected = filled("normal_")
    with Seen() as seen:
        assert torch.equal(filled("normal_"), expected)
    assert "fanin.init_.default" in seen.names
    assert puts == [False, False]


def test_vmap_sees_the_operator(puts):
    filled("normal_")
    rows = torch.func.vmap(lambda x: init.normal_(x, *RANDOM["normal_"]), randomness="different")
    first, second = rows(torch.empty(2, 6, 5))
    assert not torch.equal(first, second)
    with pytest.raises(Exception, match="one of the mapped arguments"):
        torch.func.vmap(lambda x: init.normal_(shared, 0.1, 0.5).sum() + x, randomness="different")(torch.ones(3))  # fmt: skip
    assert puts == [False, False, False]


shared = torch.empty(6, 5)


def test_fake_tensors_stay_fake(puts):
    filled("normal_")
    before = torch.get_rng_state()
    with FakeTensorMode():
        fake = init.normal_(torch.empty(6, 5), *RANDOM["normal_"])
    assert fake.shape == (6, 5)
    assert puts == [False, False]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*(torch.jit|trace).*")
def test_a_tracer_sees_the_operator(puts):
    filled("normal_")
    traced = torch.jit.trace(lambda x: init.normal_(x.clone(), 0.1, 0.5), torch.ones(6, 5), check_trace=False)  # fmt: skip
    assert "fanin::init_" in str(traced.graph)
    assert puts == [False, False]


@pytest.mark.parametrize("std", [torch.tensor(0.5), True, "0.5"])
def test_arguments_that_are_no_numbers_are_looked_at(std, puts):
    init.normal_(torch.empty(3), 0.0, 1.0)
    init.normal_(torch.empty(3), 0.0, 0.5)
    tensor = torch.ones(3)
    try:
        init.normal_(tensor, 0.0, std)
    except (InvalidValueError, TypeError, RuntimeError):
        assert (tensor == 1).all()
    assert not any(puts)


def test_integers_are_numbers(puts):
    expected = init.uniform_(torch.empty(3), -1.0, 1.0, torch.Generator().manual_seed(1))
    found = init.uniform_(torch.empty(3), -1, 1, torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)
    assert puts == [False, True]


def test_threads_have_words_of_their_own():
    """Memory that threads shared would now and then give two of them one seed, or halves of two."""
    filled("normal_")
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    expected = [[init.normal_(torch.empty(8), 0.1, 0.5, g) for _ in range(50)] for g in generators]
    found = [[] for _ in generators]

    def work(i):
        generator = torch.Generator().manual_seed(i)
        found[i] += [init.normal_(torch.empty(8), 0.1, 0.5, generator) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for x, y in zip(expected, found, strict=True) for a, b in zip(x, y, strict=True))  # fmt: skip


def test_the_first_call_may_be_in_inference_mode():
    found = []

    def work():
        with torch.inference_mode():
            found.append(init.normal_(torch.empty(3)))
            found.append(init.normal_(torch.empty(3)))
        found.append(init.normal_(torch.empty(3)))

    torch.manual_seed(0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.manual_seed(0)
    assert [f.tolist() for f in found] == [init.normal_(torch.empty(3)).tolist() for _ in range(3)]


def test_the_default_device_does_not_matter(puts):
    expected = filled("normal_")
    torch.set_default_device("meta")
    try:
        found = filled("normal_", torch.empty(6, 5, device="cpu"))
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
