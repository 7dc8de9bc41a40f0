from __future__ import annotations

import math
import sys
import textwrap

import pytest
import torch
from torch import nn

from fanin._errors import TargetError
from fanin._target import LOSSES, load_target, parse_input, parse_inputs, told

MODELS = """
    import torch
    from torch import nn
    from torch.nn import Linear

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

    def build():
        return nn.Linear(4, 2)

    def with_inputs():
        return nn.Linear(4, 2), torch.ones(3, 4)

    def wide(width):
        return nn.Linear(width, 2)

    def fails():
        raise ValueError("no such\\nwidth.")

    def fails_in_torch():
        return nn.Linear(4, "two")

    def leaves():
        raise SystemExit("bye")

    def number():
        return 3

    def triple():
        return nn.Linear(4, 2), 1, 2

    class made:
        @staticmethod
        def small():
            return nn.Linear(1, 1)

    instance = nn.Linear(5, 5)
    _private = build
    text = "a string"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with one file of models; Python's path and modules are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "zoo.py").write_text(textwrap.dedent(MODELS))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def line_of(text):
    return 1 + textwrap.dedent(MODELS).splitlines().index(text)


@pytest.mark.parametrize("place", ["zoo", "zoo.py", "./zoo.py"])
def test_a_module_and_a_file_give_the_same(place):
    target = load_target(f"{place}:with_inputs")
    assert isinstance(target.module, nn.Linear)
    assert torch.equal(target.inputs, torch.ones(3, 4))
    assert target.file.endswith("zoo.py")
    assert target.line == line_of("def with_inputs():")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("build", "Linear"), ("Net", "Net"), ("instance", "Linear"), ("made.small", "Linear")],
)
def test_functions_classes_and_instances(name, kind):
    target = load_target(f"zoo.py:{name}")
    assert type(target.module).__name__ == kind
    assert target.inputs is None


def test_a_package_and_its_neighbours_import(folder):
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "layers.py").write_text(
        "from torch import nn\ndef make(): return nn.Linear(2, 2)\n"
    )
    (folder / "pkg" / "net.py").write_text("from .layers import make\n")
    assert isinstance(load_target("pkg.net:make").module, nn.Linear)
    (folder / "alone.py").write_text("from zoo import build\n")
    assert isinstance(load_target("alone.py:build").module, nn.Linear)


def test_a_file_may_have_the_name_of_a_module(folder):
    (folder / "torch.py").write_text("from torch import nn\ndef build(): return nn.Linear(2, 2)\n")
    assert isinstance(load_target("torch.py:build").module, nn.Linear)
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zoo.py", ["pkg.module:factory", "path/file.py:factory", "'zoo.py'"]),
        (":build", ["path/file.py:factory", "':build'"]),
        ("zoo.py:", ["path/file.py:factory"]),
        ("zo.py:build", ["no file 'zo.py'"]),
        (
            "models.zoo:build",
            [
                "models.zoo does not import",
                "ModuleNotFoundError",
                "No module named 'models'",
                "looked for in",
            ],
        ),
        ("zoo.py:biuld", ["has no 'biuld'", "Net, build, with_inputs", "Did you mean 'build'?"]),
        ("zoo.py:text", ["must be a function", "str: 'a string'"]),
        (
            "zoo.py:wide",
            ["wide(width)", "missing a required argument: 'width'", "without required arguments"],
        ),
        ("zoo.py:fails", ["raises ValueError: no such width (zoo.py:", " in fails)."]),
        ("zoo.py:fails_in_torch", ["raises TypeError", "(zoo.py:", " in fails_in_torch)"]),
        ("zoo.py:leaves", ["raises SystemExit: bye (zoo.py:"]),
        ("zoo.py:number", ["must give an nn.Module or (nn.Module, example_inputs)", "int: '3'"]),
        ("zoo.py:triple", ["a tuple of 3: Linear, int, int"]),
    ],
)
def test_what_goes_wrong_is_told(spec, words):
    with pytest.raises(TargetError) as caught:
        load_target(spec)
    for word in words:
        assert word in str(caught.value)
    assert "_private" not in str(caught.value)
    assert (
        "Linear, " not in str(caught.value) or spec == "zoo.py:triple"
    )  # what it imports is not its own


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "import torch\nx = 1 / 0\n",
            ["ZeroDivisionError: division by zero (bad.py:2 in <module>)"],
        ),
        ("def build(:\n", ["SyntaxError: invalid syntax (bad.py:1)"]),
        ("import numpi\n", ["ModuleNotFoundError: No module named 'numpi' (bad.py:1 in <module>)"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit: 3 (bad.py:2 in <module>)"]),
    ],
)
def test_a_file_that_does_not_import(folder, source, words):
    (folder / "bad.py").write_text(source)
    for spec in ("bad.py:build", "bad:build"):
        with pytest.raises(TargetError) as caught:
            load_target(spec)
        assert "does not import: " in str(caught.value)
        for word in words:
            assert word in str(caught.value)
        assert "bad" not in sys.modules


def test_told_names_the_users_line_not_the_librarys(folder):
    target = load_target("zoo.py:build")
    with pytest.raises(RuntimeError) as caught:
        target.module(torch.ones(3, 5))
    assert told(caught.value).startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")


# inputs --------------------------------------------------------------------------------------


def test_floats_are_standard_normal():
    name, x = parse_input("64x3x32x32")
    assert name is None
    assert x.shape == (64, 3, 32, 32)
    assert x.dtype == torch.float32
    n = x.numel()
    assert abs(x.mean().item()) < 5 / math.sqrt(n)  # 5 standard errors of the mean
    assert abs(x.var().item() - 1) < 5 * math.sqrt(2 / n)  # and of the variance


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_float_types(dtype):
    assert parse_input(f"2x3:{dtype}")[1].dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("int64", 50257), ("int32", 7), ("uint8", 256), ("int8", 128), ("int64", 1)],
)
def test_integers_are_uniform_below_the_bound(dtype, bound):
    x = parse_input(f"400x100:{dtype}<{bound}")[1]
    assert x.dtype == getattr(torch, dtype)
    assert x.min().item() >= 0
    assert x.max().item() < bound  # torch would wrap the bound to the dtype
    # mean of a discrete uniform: (b-1)/2, variance (b^2-1)/12; 5 standard errors
    limit = 5 * math.sqrt((bound**2 - 1) / 12 / x.numel())
    assert abs(x.double().mean().item() - (bound - 1) / 2) <= limit


def test_bool_is_a_fair_coin():
    x = parse_input("100x100:bool")[1]
    assert x.dtype == torch.bool
    assert abs(x.double().mean().item() - 0.5) < 5 * 0.5 / 100


def test_the_same_numbers_every_time_and_other_numbers_at_another_place():
    x, y = parse_inputs(["4x5", "4x5"]).args
    assert torch.equal(x, parse_inputs(["4x5"]).args[0])
    assert not torch.equal(x, y)
    torch.manual_seed(3)
    assert torch.equal(x, parse_inputs(["4x5"]).args[0])
    assert not torch.equal(x, parse_inputs(["4x5"], seed=1).args[0])


def test_names_become_keywords():
    inputs = parse_inputs(["2x3", "mask=2x3:bool", "ids=2x3:int64<10"])
    assert len(inputs.args) == 1
    assert {k: v.dtype for k, v in inputs.kwargs.items()} == {
        "mask": torch.bool,
        "ids": torch.int64,
    }


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("2x", ["[name=]shape[:dtype[<bound]]", "'2x'"]),
        ("", ["[name=]shape"]),
        ("2,3", ["2x3x32x32"]),
        ("2x3x-1", ["[name=]shape"]),
        ("2x0", ["at least 1"]),
        ("2x3:float31", ["dtype must be one of", "Did you mean 'float32'?"]),
        ("2x3:int64", ["need a bound", "'2x3:int64<50257'"]),
        ("2x3:int64<0", ["from 1 to 9007199254740992; got 0"]),
        ("2x3:uint8<257", ["from 1 to 256; got 257"]),
        ("2x3:bool<3", ["from 1 to 2"]),
        ("2x3<7", ["only integers have a bound"]),
        ("2x3:float32<7", ["only integers have a bound"]),
    ],
)
def test_wrong_inputs(spec, words):
    with pytest.raises(TargetError) as caught:
        parse_input(spec)
    for word in words:
        assert word in str(caught.value)


def test_a_keyword_twice():
    with pytest.raises(TargetError, match="mask= is given twice"):
        parse_inputs(["mask=2x3", "mask=2x3"])


# losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 10), (8, 16, 10), (4, 10, 8, 8)])
def test_cross_entropy_of_no_opinion_is_ln_classes(shape):
    loss = LOSSES["cross-entropy"]
    assert loss(torch.zeros(shape)).item() == pytest.approx(math.log(10), rel=1e-6)


def test_cross_entropy_finds_the_logits_and_repeats():
    loss = LOSSES["cross-entropy"]
    logits = torch.randn(32, 5, requires_grad=True)
    first = loss({"ids": torch.arange(3), "logits": logits})
    assert first.item() == loss(logits).item()
    assert torch.autograd.grad(first, logits)[0].abs().sum() > 0


@pytest.mark.parametrize("output", [torch.zeros(5), torch.arange(6).view(2, 3), None])
def test_cross_entropy_needs_logits(output):
    with pytest.raises(TargetError, match="needs logits of shape"):
        LOSSES["cross-entropy"](output)
