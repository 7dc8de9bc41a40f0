from __future__ import annotations

import inspect
import json
import math
import os
import re
import resource
import shlex
import subprocess
import sys
import textwrap
from importlib import import_module, resources
from pathlib import Path

import pytest
import torch

import fanin
from fanin import _cli, experiments
from fanin._cli import explanations, main
from fanin._findings import Limits
from fanin._tables import number

PYTHONPATH = str(Path(fanin.__file__).parent.parent)
VERBS = ("plan", "init", "probe", "explain", "diff", "demo")
MODELS = """
    import torch
    from torch import nn

    print("talk while loading")

    def stack(depth, act):
        torch.manual_seed(0)
        layers = [m for _ in range(depth) for m in (nn.Linear(32, 32), act())]
        return nn.Sequential(*layers, nn.Linear(32, 10))

    def shallow():
        print("talk while building")
        return stack(2, nn.Tanh), torch.randn(16, 32)

    def deep():
        return stack(40, nn.ReLU), torch.randn(16, 32)

    def bare():
        return stack(2, nn.Tanh)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            raise KeyError("lost")

    def broken():
        return Broken(), torch.zeros(2, 4)

    def fails():
        raise ValueError("no such width")

    def interrupted():
        raise KeyboardInterrupt
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NO_COLOR", raising=False)
    before = set(sys.modules)
    (tmp_path / "zoo.py").write_text(textwrap.dedent(MODELS))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("zoo", "fanin_target")):
            del sys.modules[name]


@pytest.fixture
def run(capsys):
    """Run a command line here: (exit code, stdout, stderr); neither may be wider than a terminal."""

    def call(*argv, width=80):
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        if width:
            assert max(map(len, [*out.splitlines(), *err.splitlines(), ""])) <= width, out + err
        assert "\x1b" not in out + err
        assert "Traceback" not in err
        return code, out, err

    return call


def shell(*argv, **env):
    """Run it as a user does, in a process of its own."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "fanin", *argv],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# without torch -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["explain"],
        ["explain", "FAN101"],
        *([v, "--help"] for v in VERBS),
    ],
)
def test_help_and_explain_load_neither_torch_nor_numpy_nor_rich(argv):
    code = f"import sys; from fanin._cli import main; main({argv}); sys.exit(len({{'torch', 'numpy', 'rich'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_costs_at_most_250_ms_of_cpu():
    costs = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shell("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) <= 0.25


def test_version(run):
    assert run("--version") == (0, f"fanin {fanin.__version__}\n", "")


def test_help_names_every_verb_and_what_exit_codes_mean(run):
    _, out, _ = run("--help")
    assert all(re.search(rf"^  {verb} ", out, flags=re.MULTILINE) for verb in VERBS)
    assert "Exit code: 0 clean" in out


# explain -------------------------------------------------------------------------------------

PAGES = explanations()


def test_every_finding_has_a_page():
    rules = import_module("fanin._findings"), import_module("fanin._parameter_findings")
    source = "".join(map(inspect.getsource, rules))
    assert set(re.findall(r'"(FAN\d{3})"', source)) == set(PAGES)


@pytest.mark.parametrize("code", PAGES)
def test_a_page_has_its_parts(code):
    page = PAGES[code]
    assert page.startswith(f"# {code}: ")
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == [
        "What it does", "Why it is bad", "Example", "What to do", "References",
    ]  # fmt: skip
    assert max(map(len, page.splitlines())) <= 80
    assert "fanin.initialize_(model, x)" in page or code in {"FAN202", "FAN206"}


@pytest.mark.parametrize("code", PAGES)
def test_a_pages_example_shows_its_finding(code, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[code], flags=re.DOTALL)
    exec(compile(block, f"{code}.md", "exec"), {})
    assert f"'{code}'" in capsys.readouterr().out.splitlines()[0]


def test_pages_quote_the_limits_in_force():
    limits = Limits()
    assert limits.growth == 1000 and "more than 1000 times" in PAGES["FAN101"]
    assert limits.shrink == 1 / 1000 and "less than 1/1000" in PAGES["FAN102"]
    assert limits.dead == 0.5 and "more than half of the units" in PAGES["FAN103"]
    assert f"above {limits.correlation}" in PAGES["FAN104"]
    assert limits.saturated == 0.5 and "more than half of the outputs" in PAGES["FAN105"]
    assert f"more than {limits.loss} times" in PAGES["FAN106"]


def test_explain_lists_and_finds(run):
    code, out, _ = run("explain")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(PAGES)
    assert run("explain", "fan102")[1].rstrip() == PAGES["FAN102"].rstrip()
    signal = run("explain", "FAN1")[1].splitlines()[1:]
    assert [line.split()[0] for line in signal] == [c for c in PAGES if c.startswith("FAN1")]


def test_explain_of_an_unknown_code(run):
    code, out, err = run("explain", "FAN999")
    assert (code, out) == (2, "")
    assert err.startswith("fanin: the code must be one of FAN101, ")


# plan ----------------------------------------------------------------------------------------


def test_plan_prints_a_table(run):
    code, out, err = run("plan", "zoo.py:shallow", "--scheme", "kaiming")
    assert code == 0
    assert (
        out.splitlines()[0]
        == "fanin plan: scheme kaiming, 6 parameters (2442 elements), rng fanin-1"
    )
    std = number(fanin.gain("tanh") / math.sqrt(32))
    assert re.search(rf"^0\.\.2\.weight +x2 +linear +32 +{std} ", out, flags=re.MULTILINE)
    assert err == "talk while loading\ntalk while building\n"


def test_plan_json_is_alone_on_stdout_and_comes_back(run, folder):
    code, out, _ = run("plan", "zoo.py:shallow", "--format", "json", width=None)
    assert code == 0
    plan = fanin.InitPlan.from_json(out)
    assert run("plan", "zoo.py:shallow", "--format", "json", "-o", "p.json")[1] == ""
    assert (folder / "p.json").read_text() == out
    import zoo

    assert plan == fanin.plan(*zoo.shallow())


def test_plan_markdown(run):
    _, out, _ = run("plan", "zoo.py:shallow", "--scheme", "kaiming", "--format", "md", width=None)
    assert "| 0..2.weight | x2 | linear |" in out


def test_plan_needs_no_inputs_and_takes_others(run):
    assert run("plan", "zoo:bare")[0] == 0
    assert run("plan", "zoo:bare", "--input", "4x32")[0] == 0
    assert run("plan", "zoo:Tied", "--input", "4x7:int64<11")[0] == 0


def test_schemes_are_listed(run):
    code, out, _ = run("plan", "--schemes")
    assert code == 0
    assert set(fanin.schemes.SCHEMES) <= {line.split(" ")[0] for line in out.splitlines()}


# init ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_init_writes_what_initialize_writes(run, folder, name):
    code, out, err = run("init", "zoo.py:shallow", "-o", name, "--seed", 7)
    assert (code, out) == (0, "")
    assert re.search(
        rf"wrote {name}: 6 parameters, rng fanin-1, scheme auto, seed 7, plan [0-9a-f]",
        err.replace("\n", " "),
    )
    import zoo

    model, x = zoo.shallow()
    fanin.initialize_(model, x, seed=7)
    written = _read(folder / name)
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[k], v) for k, v in model.state_dict().items())
    assert _files() == {"zoo.py", name}


@pytest.mark.parametrize("device", [(), ("--device", "cpu")])
def test_init_of_a_model_on_the_meta_device(run, folder, device):
    """Memory, values and buffers: the file is that of the model built where it lies."""
    (folder / "apart.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def whole():\n"
        "    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), torch.zeros(3, 4)\n"
        "def build():\n"
        "    with torch.device('meta'):\n"
        "        return whole()\n"
    )
    assert run("init", "apart.py:whole", "-o", "whole.pt")[0] == 0
    assert run("init", "apart.py:build", "-o", "meta.pt", *device)[0] == 0
    there, here = _read(folder / "whole.pt"), _read(folder / "meta.pt")
    assert there.keys() == here.keys()
    assert all(torch.equal(here[k], v) for k, v in there.items())


def _files():
    return {path.name for path in Path().iterdir() if path.name != "__pycache__"}


def _read(path):
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, weights_only=True)


def test_init_writes_a_tie_once_and_it_loads(run, folder):
    assert run("init", "zoo:Tied", "-o", "w.safetensors", "--input", "4x7:int64<11")[0] == 0
    import zoo
    from safetensors.torch import load_model

    model = zoo.Tied()
    load_model(model, folder / "w.safetensors")
    assert model.head.weight is model.embed.weight
    other = zoo.Tied()
    fanin.initialize_(other, torch.zeros(4, 7, dtype=torch.long))
    assert torch.equal(model.head.weight, other.head.weight)


def test_init_keeps_a_note_of_the_plan(run, folder):
    run("init", "zoo:shallow", "-o", "w.safetensors", "--scheme", "xavier", "--seed", 5)
    import zoo
    from safetensors import safe_open

    with safe_open(folder / "w.safetensors", "pt") as file:
        about = file.metadata()
    expected = fanin.plan(*zoo.shallow(), scheme="xavier").hash()
    assert (about["rng"], about["scheme"], about["seed"], about["plan"]) == (
        "fanin-1",
        "xavier",
        "5",
        expected,
    )


def test_init_follows_a_plan(run, folder):
    run("plan", "zoo:shallow", "--format", "json", "-o", "auto.json")
    plan = fanin.InitPlan.from_json((folder / "auto.json").read_text())
    (folder / "p.json").write_text(plan.scaled("4.weight", 0.0, "a zero head").to_json())
    assert run("init", "zoo:shallow", "-o", "w.pt", "--plan", "p.json")[0] == 0
    assert _read(folder / "w.pt")["4.weight"].abs().sum() == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["zoo:shallow", "-o", "w.bin"], "must be one of .safetensors, .pt, .pth; got '.bin'"),
        (["zoo:shallow", "-o", "no/w.pt"], "no folder no to write w.pt in"),
        (
            ["zoo:shallow", "-o", "w.pt", "--plan", "no.json"],
            "No such file or directory: 'no.json'",
        ),
        (["zoo:shallow", "-o", "w.pt", "--plan", "zoo.py"], "zoo.py: the plan is not JSON"),
        (["zoo:shallow", "-o", "w.pt", "--plan", "odd.json"], "odd.json: not a plan"),
        (["zoo:Tied", "-o", "w.pt", "--plan", "p.json"], "this plan is for another model"),
        (["zoo:shallow", "-o", "w.pt", "--scheme", "kaimin"], "Did you mean 'kaiming'?"),
        (["zoo:shallow", "-o", "w.pt", "--seed", "-1"], "seed"),
        (
            ["zoo:shallow", "-o", "w.pt", "--plan", "p.json", "--scheme", "torch"],
            "without --scheme and --override",
        ),
        (["zoo:shallow"], "Missing option '-o'"),
    ],
)
def test_init_that_cannot_be_writes_nothing(run, folder, argv, words):
    run("plan", "zoo:shallow", "--format", "json", "-o", "p.json")
    (folder / "odd.json").write_text("[1, 2]")
    before = _files()
    code, out, err = run("init", *argv, width=None)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert _files() == before


def test_safetensors_is_an_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    code, _, err = run("init", "zoo:shallow", "-o", "w.safetensors")
    assert code == 2
    assert "pip install 'fanin[safetensors]'" in " ".join(err.split())


def test_a_failed_write_leaves_the_old_file(run, folder, monkeypatch):
    (folder / "w.pt").write_text("old")

    def fail(state, path):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    code, _, err = run("init", "zoo:shallow", "-o", "w.pt")
    assert code == 2
    assert "fanin: disk full" in err
    assert (folder / "w.pt").read_text() == "old"
    assert not [n for n in _files() if n.endswith(".part")]


# probe ---------------------------------------------------------------------------------------


def test_probe_of_a_healthy_model(run):
    code, out, _ = run("probe", "zoo:shallow")
    assert code == 0
    assert "no findings" in out
    assert out.splitlines()[0] == "fanin report: 5 ops measured and predicted in float32"


def test_probe_of_a_deep_default(run):
    code, out, _ = run("probe", "zoo:deep")
    assert code == 1
    assert "FAN102 error" in out and "FAN104 error" in out
    assert "fix  fanin.initialize_(model, x)" in out
    assert len(out.splitlines()) < 60


def test_probe_json_is_the_report(run):
    code, out, err = run("probe", "zoo:deep", "--format", "json", width=None)
    assert code == 1
    report = fanin.SignalReport.from_json(out)
    assert {"FAN102", "FAN104"} <= {f.code for f in report.findings}
    assert len(report.layers) == 81
    assert err == "talk while loading\n"


@pytest.mark.parametrize(
    ("argv", "code", "found"),
    [
        (["--select", "FAN102"], 1, {"FAN102"}),
        (["--select", "fan102,FAN104"], 1, {"FAN102", "FAN104"}),
        (["--select", "FAN1", "--ignore", "FAN102"], 1, {"FAN104"}),
        (["--ignore", "FAN102,FAN104"], 0, set()),
        (["--select", "FAN105"], 0, set()),
        (["--fail-on", "never"], 0, {"FAN102", "FAN104"}),
        (["--no-backward", "--ignore", "FAN107"], 1, {"FAN104"}),
    ],
)
def test_which_findings_count(run, argv, code, found):
    exit_code, out, _ = run("probe", "zoo:deep", "--format", "json", *argv, width=None)
    assert exit_code == code
    assert {f["code"] for f in json.loads(out)["findings"]} == found


def test_fail_on_warning(run, folder):
    argv = ["probe", "zoo:loud", "--loss", "cross-entropy", "--select", "FAN106"]
    with (folder / "zoo.py").open("a") as file:
        file.write(
            "\ndef loud():\n    model = bare()\n    model[4].weight.data *= 100\n    return model, torch.randn(64, 32)\n"
        )
    assert run(*argv)[0] == 0
    assert run(*argv, "--fail-on", "error")[0] == 0
    code, out, _ = run(*argv, "--fail-on", "warning")
    assert code == 1
    assert "FAN106 warning" in out
    assert f"(chance {math.log(10):.4g})" in out


def test_probe_for_github_points_to_the_factory(run):
    line = 1 + textwrap.dedent(MODELS).splitlines().index("def deep():")
    code, out, _ = run(
        "probe", "zoo.py:deep", "--format", "github", "--select", "FAN104", width=None
    )
    assert code == 1
    (command,) = out.splitlines()
    assert command.startswith(f"::error file=zoo.py,line={line},title=FAN104::")
    assert "%0Awhy: " in command and "%0Afix: fanin.initialize_(model, x)" in command


def test_probe_markdown_to_a_file(run, folder):
    code, out, err = run("probe", "zoo:deep", "--format", "md", "-o", "r.md")
    assert (code, out) == (1, "")
    assert "wrote r.md" in err
    assert "- **FAN102 error**" in (folder / "r.md").read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["zoo:bare"], "probe runs the model, so it needs inputs"),
        (["zoo:bare", "--input", "4x33"], "mat1 and mat2 shapes cannot be multiplied"),
        (["zoo:bare", "--input", "4x"], "--input must be"),
        (["zoo:broken"], "KeyError"),
        (["zoo:fails"], "zoo:fails raises ValueError: no such width"),
        (["zoo:nothing"], "It defines stack, shallow, deep"),
        (["nowhere:x"], "does not import: ModuleNotFoundError"),
        (["zoo:deep", "--select", "FAN9"], "a finding's code must be one of FAN101"),
        (["zoo:deep", "--format", "xml"], "'xml' is not one of 'table', 'json', 'md', 'github'"),
        (["zoo:Tied", "--input", "4x7:int64<11", "--loss", "mse"], "'mse' is not"),
        ([], "Missing argument 'TARGET'"),
    ],
)
def test_probe_that_cannot_be_exits_2(run, argv, words):
    code, out, err = run("probe", *argv)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())


# errors --------------------------------------------------------------------------------------


def test_an_unforeseen_error_is_told_without_a_traceback(run, monkeypatch):
    from fanin import _api

    def fail(*args, **kwargs):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(_api, "plan", fail)
    code, out, err = run("plan", "zoo:bare")
    assert (code, out) == (2, "")
    assert "fanin: planning failed: ZeroDivisionError: division by zero" in err
    with pytest.raises(fanin.TargetError):
        main(["--traceback", "plan", "zoo:bare"])


def test_an_interrupt_is_no_finding(run):
    code, out, err = run("plan", "zoo:interrupted")
    assert (code, out) == (130, "")
    assert "fanin: interrupted" in err


# diff ----------------------------------------------------------------------------------------


def test_diff_of_plans_and_targets(run, folder):
    for scheme in ("kaiming", "xavier"):
        run("plan", "zoo:shallow", "--scheme", scheme, "--format", "json", "-o", f"{scheme}.json")
    code, out, _ = run("diff", "kaiming.json", "xavier.json")
    assert code == 1
    assert "~ 0..2.weight x2" in out
    assert "0 removed, 0 added, 3 changed" in out
    assert run("diff", "kaiming.json", "zoo:shallow", "--scheme", "kaiming")[:2] == (
        0,
        "the plans write the same values\n",
    )
    code, out, _ = run("diff", "kaiming.json", "xavier.json", "--format", "json", width=None)
    assert code == 1
    assert [c["name"] for c in json.loads(out)["changed"]] == ["0.weight", "2.weight", "4.weight"]
    assert run("diff", "kaiming.json", "missing.json")[0] == 2


# demo ----------------------------------------------------------------------------------------


def test_demo_runs_an_experiment_with_progress(run, folder, monkeypatch):
    seen = {}

    def fake(name, *, out, seed, progress):
        seen.update(name=name, out=out, seed=seed)
        progress(0.5, "half")
        print("talk")
        table = experiments.Table("title", ("depth", "rms"), ((1, 0.5),))
        return experiments.Result(name, "what was seen", (table,))

    monkeypatch.setattr(experiments, "run", fake)
    code, out, err = run("demo", "--out", "here", "--seed", 3)
    assert code == 0
    assert seen == {"name": experiments.NAMES[0], "out": Path("here"), "seed": 3}
    assert out.startswith("title\ndepth ")
    assert "what was seen" in out and "talk" not in out
    assert err == "talk\n"
    assert json.loads(run("demo", "fan-modes", "--format", "json")[1])["summary"] == "what was seen"


def test_demo_names_are_listed_and_checked(run):
    out = run("demo", "--help")[1]
    assert all(
        re.search(rf"^ +{re.escape(name)} ", out, flags=re.MULTILINE) for name in experiments.NAMES
    )
    code, _, err = run("demo", "leaky")
    assert code == 2
    assert "Did you mean 'leaky-relu'?" in " ".join(err.split())


# a terminal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_colour_unless_it_says_no(capsys, monkeypatch, no_color):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    _cli.emit("FAN102 error it shrinks\nFAN106 warning loss", None)
    out = capsys.readouterr().out
    assert ("\x1b[31m\x1b[1mFAN102 error\x1b[0m it shrinks" in out) is not no_color
    assert ("\x1b" in out) is not no_color


def test_on_a_terminal_help_is_richs_and_fits():
    import pty

    parent, child = pty.openpty()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fanin", "demo", "--help"], env=env, stdout=child, stderr=child
    )
    os.close(child)
    text = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(parent)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode()).splitlines()
    assert any("╭" in line for line in lines)
    assert max(map(len, lines)) <= 80
    for name in experiments.NAMES:
        assert any(re.match(rf"[ │]*{re.escape(name)} ", line) for line in lines)


# the documentation ---------------------------------------------------------------------------


def test_every_command_of_the_documentation_runs_clean(run, folder):
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    (model,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (folder / "model.py").write_text(model)
    commands = [
        c
        for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
        for c in block.splitlines()
    ]
    assert {shlex.split(c)[1] for c in commands} == set(VERBS)
    for command in commands:
        assert run(*shlex.split(command)[1:])[0] == 0, command


def test_the_documentation_names_every_option_and_form():
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    options = {
        o
        for verb in _cli.cli.commands.values()
        for p in verb.params
        for o in p.opts
        if o.startswith("--")
    }
    assert {o for o in options if o not in page} <= {"--output"}  # known as -o


# as a user runs it ---------------------------------------------------------------------------


def test_end_to_end_in_a_process_of_its_own():
    done = shell("probe", "zoo:deep")
    assert done.returncode == 1, done.stderr
    assert done.stderr == "talk while loading\n"
    assert "more: fanin explain FAN1" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_pages_are_package_data():
    assert (resources.files("fanin") / "explanations" / "FAN101.md").is_file()
