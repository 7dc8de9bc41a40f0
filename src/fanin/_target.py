"""TARGET and --input -> a model and what to call it with.

Here the user's own code runs, so every failure is reported as theirs: type, message, file, line.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ._errors import TargetError, closest, one_of
from ._fill import fill_
from ._inputs import Inputs
from .distributions import Normal, Uniform

EXPECTED = "TARGET must be pkg.module:factory or path/file.py:factory"
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?:<(?P<bound>\d+))?"
)


class Target(NamedTuple):
    """What a TARGET gave.

    Args:
        module: the model.
        inputs: example inputs, if the factory returned ``(module, example_inputs)``.
        file: the factory's source file, None if it has none.
        line: the line where the factory begins.
    """

    module: nn.Module
    inputs: Any = None
    file: str | None = None
    line: int | None = None


def load_target(spec: str) -> Target:
    """Import ``pkg.module:factory`` or ``path/file.py:factory`` and call the factory.

    Args:
        spec: modules are looked for in the working directory too. The factory is a function
            without required arguments that returns a module or ``(module, example_inputs)``, an
            nn.Module class, or an nn.Module.

    Raises:
        TargetError: wrong syntax; the file or module does not import; it has no such attribute;
            the factory raises; or it returns something else.
    """
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        raise TargetError(f"{EXPECTED}; got {spec!r}. Example: fanin plan model.py:build")
    source = _import(place)
    factory = _attribute(source, place, attribute)
    made = factory if isinstance(factory, nn.Module) else _call(factory, spec)
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise TargetError(
            f"{spec} must give an nn.Module or (nn.Module, example_inputs); got {_described(made)}."
        )
    return Target(module, inputs, *_source(factory, source))


def _import(place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py" or "/" in place or path.is_file()
    if is_file and not path.is_file():
        raise TargetError(f"no file {place!r} in {Path.cwd()}. {EXPECTED}.")
    _make_importable(path.resolve().parent if is_file else Path.cwd())
    try:
        return _import_file(path.resolve()) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        hint = "" if is_file else _module_hint(place, error)
        raise TargetError(f"{place} does not import: {told(error)}.{hint}") from error


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_file(path: Path) -> ModuleType:
    """A file as a module of its own name, or of another where that name is taken."""
    name = path.stem if path.stem not in sys.modules else f"fanin_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is not a Python file. {EXPECTED}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_hint(place: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and place.startswith(error.name):
        return f" It was looked for in {Path.cwd()} and in Python's path."
    return ""


def _attribute(source: ModuleType, place: str, attribute: str) -> Any:
    found: Any = source
    for part in attribute.split("."):
        if not hasattr(found, part):
            usable = [n for n, v in vars(source).items() if _is_factory(n, v, source)]
            has = f"It defines {', '.join(usable)}." if usable else "It defines no factory."
            raise TargetError(f"{place} has no {attribute!r}. {has}{closest(attribute, usable)}")
        found = getattr(found, part)
    if not callable(found):
        raise TargetError(
            f"{place}:{attribute} must be a function, an nn.Module class or an nn.Module; "
            f"got {_described(found)}."
        )
    return found


def _is_factory(name: str, value: Any, source: ModuleType) -> bool:
    """Something that the file itself offers: no helper of its imports."""
    if name.startswith("_") or not callable(value):
        return False
    return isinstance(value, nn.Module) or getattr(value, "__module__", None) == source.__name__


def _call(factory: Callable[[], Any], spec: str) -> Any:
    _check_arguments(factory, spec)
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise TargetError(f"{spec} raises {told(error)}.") from error


def _check_arguments(factory: Callable[[], Any], spec: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # a builtin does not say what it takes: calling it tells
    try:
        signature.bind()
    except TypeError as error:
        raise TargetError(
            f"{spec} needs arguments, {spec.rpartition(':')[2]}{signature}: {error}. "
            "Write a function without required arguments that builds the model."
        ) from error


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: {', '.join(type(v).__name__ for v in value)}"
    return f"{type(value).__name__}: {str(value)[:60]!r}"


def _source(factory: Any, source: ModuleType) -> tuple[str | None, int | None]:
    shown = factory if inspect.isfunction(factory) or inspect.isclass(factory) else type(factory)
    if getattr(shown, "__module__", None) != source.__name__:
        return source.__file__, 1
    try:
        return inspect.getsourcefile(shown), inspect.getsourcelines(shown)[1]
    except (OSError, TypeError):
        return source.__file__, 1


def told(error: BaseException) -> str:
    """``"ValueError: no such width (model.py:12 in build)"``: type, message and the user's line."""
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({_short(error.filename)}:{error.lineno})"
    frame = users_frame(error)
    place = f" ({_short(frame.filename)}:{frame.lineno} in {frame.name})" if frame else ""
    return f"{type(error).__name__}{': ' if message else ''}{message.rstrip('.')}{place}"


def users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The last frame of the user's own code: not fanin's, not a library's; None if there is none."""
    ours = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((ours, "<"))]
    own = [f for f in theirs if not _in_library(f.filename)]
    return own[-1] if own else None


def _in_library(filename: str) -> bool:
    library = Path(traceback.__file__).parent
    return (
        "site-packages" in filename
        or "dist-packages" in filename
        or filename.startswith(str(library))
    )


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


# inputs --------------------------------------------------------------------------------------


def parse_inputs(specs: Sequence[str], seed: int = 0) -> Inputs:
    """All --input options of a command line, as the arguments of one call.

    Raises:
        TargetError: wrong syntax, or one keyword given twice.
    """
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for i, spec in enumerate(specs):
        name, tensor = parse_input(spec, index=i, seed=seed)
        if name is None:
            args.append(tensor)
        elif name in kwargs:
            raise TargetError(f"--input {name}= is given twice.")
        else:
            kwargs[name] = tensor
    return Inputs(*args, **kwargs)


def parse_input(spec: str, index: int = 0, seed: int = 0) -> tuple[str | None, torch.Tensor]:
    """``[name=]shape[:dtype[<bound]]`` -> (name, tensor), the same numbers every time.

    Floats are N(0, 1); integers are uniform on 0 .. bound-1; a bool is a fair coin. Values are a
    function of (seed, index, position): the engine draws them for the key ``input<index>``.

    Args:
        spec: ``2x3x32x32``, ``2x16:int64<50257``, ``mask=2x16:bool``.
        index: the place among the inputs.
        seed: of the draw.

    Raises:
        TargetError: wrong syntax, unknown dtype, an integer without a bound, a bound too large.
    """
    match = _INPUT.fullmatch(spec.strip())
    if match is None:
        raise TargetError(
            f"--input must be [name=]shape[:dtype[<bound]], such as 2x3x32x32 or "
            f"'2x16:int64<50257' or 'mask=2x16:bool'; got {spec!r}."
        )
    shape = tuple(int(n) for n in match["shape"].split("x"))
    try:
        dtype = getattr(torch, one_of("dtype", match["dtype"] or "float32", DTYPES))
    except ValueError as error:
        raise TargetError(f"--input {spec}: {error}") from error
    if 0 in shape:
        raise TargetError(f"--input {spec}: every extent must be at least 1.")
    bound = _bound(spec, dtype, match["bound"])
    key = f"input{index}"
    if bound is None:
        return match["name"], fill_(
            torch.empty(shape, dtype=dtype), Normal(1.0), key=key, seed=seed
        )
    drawn = fill_(
        torch.empty(shape, dtype=torch.float64), Uniform(0.0, float(bound)), key=key, seed=seed
    )
    return match["name"], drawn.floor_().clamp_(max=bound - 1).to(dtype)


def _bound(spec: str, dtype: torch.dtype, given: str | None) -> int | None:
    """The exclusive upper bound of integers; None for floats."""
    if dtype.is_floating_point:
        if given is not None:
            raise TargetError(f"--input {spec}: only integers have a bound; floats are N(0, 1).")
        return None
    if dtype == torch.bool:
        limit, bound = 2, int(given or 2)
    elif given is None:
        raise TargetError(
            f"--input {spec}: integers need a bound, the number of different values, "
            f"such as '{spec}<50257' (quoted, for the shell knows <)."
        )
    else:
        limit, bound = min(torch.iinfo(dtype).max + 1, 2**53), int(given)
    if not 1 <= bound <= limit:
        raise TargetError(f"--input {spec}: the bound must be from 1 to {limit}; got {bound}.")
    return bound


# losses --------------------------------------------------------------------------------------


def random_cross_entropy(output: Any) -> torch.Tensor:
    """Mean cross-entropy of a model's logits against classes drawn at random, the same every time.

    Args:
        output: logits, or a structure whose first floating tensor they are; classes along the
            last axis, or along axis 1 of images (4 axes and more).

    Raises:
        TargetError: no floating tensor of at least two axes.
    """
    logits = next(
        (t for t in tree_leaves(output) if torch.is_tensor(t) and t.is_floating_point()), None
    )
    if logits is None or logits.ndim < 2:
        got = "none" if logits is None else f"shape {list(logits.shape)}"
        raise TargetError(
            f"--loss cross-entropy needs logits of shape (samples, ..., classes); got {got}."
        )
    scores = (logits.movedim(1, -1) if logits.ndim > 3 else logits).flatten(0, -2)
    count, classes = scores.shape
    drawn = torch.empty(count, dtype=torch.float64)
    fill_(drawn, Uniform(0.0, float(classes)), key="labels")
    labels = drawn.floor_().clamp_(max=classes - 1).long().to(scores.device)
    return functional.cross_entropy(scores, labels)


LOSSES = {"cross-entropy": random_cross_entropy}
