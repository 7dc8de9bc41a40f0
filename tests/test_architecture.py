"""The shape of the package, checked: imports point one way, the core knows no torch, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

import pytest

import fanin

PACKAGE = Path(fanin.__file__).parent

# A file imports only from names above its own. docs/architecture.md says what each one holds.
CORE = [
    "_errors", "_tables", "_fold", "_text", "_fans", "_normal", "_distribution", "_matrixwide", "distributions", "_quadrature",
    "_activations", "_gains", "initializers", "_facts", "_rows", "_plan", "_report", "_recipes", "schemes", "_findings",
    "_graph", "_regions", "_moments", "moments", "_quotients", "_reuse", "_signal", "_predict", "_structure", "_mirrors", "_solve", "_solve_backward", "_lookups",
]  # fmt: skip
EDGE = [
    "_inputs", "_nonlinearity", "_layouts", "_rng", "_shards", "_drawers", "_fill", "_fingerprint", "_preserve", "_record", "_aten", "_names",
    "_arguments", "_standin", "_shapes", "_layer_shapes", "_views", "_kernels", "_ledger", "_draws", "_sampling", "_tape",
    "_surroundings",
    "_capture", "_analysis",
    "_follow", "_roles", "_parameter_findings", "_apply", "_buffers", "_allocate", "_materialize", "_verify", "_no_init", "_grow", "_weights", "_parametrized", "_check", "_solved", "_measure", "_meter", "_probe",
    "_calibrate", "_init_op", "_init_support", "init", "_dropout_op",
]  # fmt: skip
SHELL = [
    "moments",
    "_api",
    "nn",
    "experiments",
    "_target",
    "_override",
    "_progress",
    "_console",
    "_cli",
    "__main__",
    "__init__",
]
ORDER = [*CORE, *EDGE, *SHELL]
# The arrows that point down: a plan is data, `plan.fill_` and its like are its doors to the writer.
DOORS = {("_plan", "_apply"), ("_plan", "_materialize"), ("_plan", "_verify")}
TABLES = {"coefficients", "_activations"}  # data rather than code: no size budget


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The entry of ORDER that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    """Names imported at run time; relative ones resolved to their place in the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = ("fanin", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            found |= {module} if node.module else {f"{module}.{a.name}" for a in node.names}
    return found


def test_every_file_has_a_place():
    assert {place(p) for p in sources()} == set(ORDER)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(path):
    mine = place(path)
    theirs = {name.split(".")[1] for name in imported(path) if name.startswith("fanin.")}
    wrong = {
        t for t in theirs - {mine} if (mine, t) not in DOORS and ORDER.index(t) > ORDER.index(mine)
    }
    assert not wrong, f"{mine} imports {sorted(wrong)}, which stand below it"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_has_no_torch(path):
    if place(path) in CORE:
        assert "torch" not in {name.split(".")[0] for name in imported(path)}


def test_one_writer():
    """Only `_fill` writes what is drawn; the drop-in leaves constants of any dtype to torch itself."""
    writers = {
        place(p)
        for p in sources()
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in {"normal_", "uniform_", "trunc_normal_", "fill_", "bernoulli_", "random_"}
        and isinstance(node.value, ast.Name)
        and node.value.id not in {"self", "fanin", "plan", "made", "init"}
    }
    assert writers <= {"_fill", "_init_op"}, writers


def test_size_budgets():
    code = [p for p in sources() if p.stem not in TABLES]
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in code}
    assert median(lines.values()) <= 240
    assert {p.name: n for p, n in lines.items() if n > 500} == {}
    functions = [
        node.end_lineno - node.lineno + 1 - _docstring_lines(node)
        for p in code
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert quantiles(functions, n=10)[-1] <= 40


def _docstring_lines(node: ast.FunctionDef) -> int:
    first = node.body[0]
    is_text = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    return first.end_lineno - first.lineno + 1 if is_text else 0


def test_all_is_exactly_what_can_be_imported():
    for name in fanin.__all__:
        assert getattr(fanin, name) is not None
    assert len(fanin.__all__) == len(set(fanin.__all__))
    assert set(dir(fanin)) == set(fanin.__all__)
    declared = {
        alias.asname or alias.name
        for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
        for statement in node.body
        for alias in statement.names
    }
    assert declared | {"__version__"} == set(fanin.__all__)


def test_unknown_attribute_names_what_there_is():
    with pytest.raises(AttributeError, match="initialize_"):
        fanin.initialise


@pytest.mark.parametrize(
    "code",
    [
        "import fanin",
        "from fanin._cli import main; main(['--help'])",
        "from fanin._cli import main; main(['explain', 'FAN102'])",
    ],
)
def test_no_torch_until_it_is_needed(code):
    check = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules\nassert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
