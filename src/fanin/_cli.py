"""The command line: argv in, text out. Results alone on stdout, all talk on stderr.

Exit 0: clean. Exit 1: findings at or above --fail-on, or two plans that differ. Exit 2: wrong
usage, or the model could not be analysed. torch is loaded only by the verbs that need it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fanin

from . import experiments
from ._console import SEVERITIES, complain, emit, github_lines, talk, weights_writer, write_whole
from ._errors import FaninError, InvalidValueError, TargetError, one_of
from ._progress import progress_bar
from ._tables import table
from ._text import diff_text, plan_markdown, plan_text, report_markdown, report_text

if TYPE_CHECKING:
    import rich_click as click

    from ._plan import InitPlan
    from ._report import SignalReport
    from ._target import Target
elif sys.stdout.isatty():
    import rich_click as click
else:
    import click  # a pipe gets plain help, in half the time

EPILOG = "Exit code: 0 clean, 1 findings (see --fail-on), 2 usage or could not analyse."
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
FILE = click.Path(path_type=Path)
Verb = Callable[..., Any]

# options that several verbs share ------------------------------------------------------------

target_argument = click.argument("target")
input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SPEC",
    help="Example input: 2x3x32x32, '2x16:int64<50257', 'mask=2x16:bool'. May be repeated. "
    "Overrides the factory's.",
)
scheme_option = click.option(
    "--scheme", metavar="NAME", help="How to choose; see --schemes. Default: auto."
)
output_option = click.option("-o", "--output", type=FILE, help="Write here, not to stdout.")
seed_option = click.option(
    "--seed", default=0, show_default=True, help="The same seed gives the same bits."
)


def format_option(*names: str) -> Callable[[Verb], Verb]:
    """``--format``, the first name being the default."""
    return click.option(
        "--format", "form", type=click.Choice(names), default=names[0], show_default=True
    )


def _show_schemes(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .schemes import SCHEMES  # noqa: PLC0415 - it loads numpy

        rows = [(s.name, s.summary, s.source) for s in SCHEMES.values()]
        click.echo(table(("scheme", "what it does", "source"), rows, kinds="ltt"))
        context.exit()


override_option = click.option(
    "--override",
    "overrides",
    metavar="GLOB=DIST",
    multiple=True,
    help="How some parameters start: 'token=Normal(0.02)'. Repeatable; the last match wins.",
)
schemes_option = click.option(
    "--schemes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_schemes,
    help="List the schemes and exit.",
)

# verbs ---------------------------------------------------------------------------------------


@click.group(context_settings=SETTINGS, epilog=EPILOG)
@click.version_option(fanin.__version__, prog_name="fanin", message="%(prog)s %(version)s")
@click.option("--traceback", is_flag=True, help="On an error show Python's traceback too.")
def cli(traceback: bool) -> None:
    """Give every weight of a PyTorch model the right starting value, and see why.

    TARGET is pkg.module:factory or path/file.py:factory. The factory returns a module, or
    (module, example_inputs).
    """


@cli.command(epilog=EPILOG, short_help="Show how every parameter would start, and why.")
@target_argument
@input_option
@scheme_option
@override_option
@schemes_option
@format_option("table", "json", "md")
@output_option
def plan(
    *,
    target: str,
    inputs: tuple[str, ...],
    scheme: str | None,
    overrides: tuple[str, ...],
    form: str,
    output: Path | None,
) -> None:
    """Show how every parameter would start, and why; nothing is written."""
    made = _plan_of(_load(target, inputs), scheme, overrides)
    forms = {"table": plan_text, "json": lambda p: p.to_json(), "md": plan_markdown}
    emit(forms[form](made), output)


@cli.command(epilog=EPILOG, short_help="Initialise a model and write its weights to a file.")
@target_argument
@click.option(
    "-o", "--output", type=FILE, required=True, help="A name in .safetensors, .pt or .pth."
)
@click.option("--plan", "plan_file", type=FILE, help="Follow this plan, a JSON file.")
@seed_option
@click.option(
    "--device",
    metavar="DEVICE",
    help="Where a model on the meta device gets its memory: cpu, cuda. Default: torch's.",
)
@input_option
@scheme_option
@override_option
@schemes_option
def init(
    *,
    target: str,
    output: Path,
    plan_file: Path | None,
    seed: int,
    device: str | None,
    inputs: tuple[str, ...],
    scheme: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Initialise the model and write its state dict to a file.

    A model on the meta device is given memory first, and its buffers their values.
    """
    if plan_file and (scheme or overrides):
        raise click.UsageError(
            "--plan says how parameters start; it goes without --scheme and --override."
        )
    save = weights_writer(output)
    given = _read_plan(plan_file) if plan_file else None
    loaded = _load(target, inputs)
    made = given or _plan_of(loaded, scheme, overrides)
    with _users_code("filling"):
        has_numbers = any(not p.is_meta for p in loaded.module.parameters())
        made.materialize_(loaded.module, seed=seed, device=device)  # what has no numbers yet
        if has_numbers:
            made.fill_(loaded.module, seed=seed)
    about = {"rng": made.rng, "scheme": made.scheme, "seed": str(seed), "plan": made.hash()}
    write_whole(output, lambda path: save(loaded.module, path, about))
    talk(
        f"wrote {output}: {len(made)} parameters, {', '.join(f'{k} {v[:16]}' for k, v in about.items())}"
    )


def findings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which findings count, and from what severity on the exit code is 1."""
    options = (
        click.option("--select", metavar="CODES", help="Only these: FAN102,FAN103, or FAN1."),
        click.option("--ignore", metavar="CODES", help="Not these findings."),
        click.option(
            "--fail-on",
            type=click.Choice([*SEVERITIES, "never"]),
            default="error",
            show_default=True,
            help="The least severity that makes the exit code 1.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(epilog=EPILOG, short_help="Predict the signal without running the model.")
@target_argument
@input_option
@click.option("--plan", "plan_file", type=FILE, help="As this plan would start it.")
@click.option("--scheme", help="As this scheme would start it.")
@findings_options
@format_option("table", "json", "md", "github")
@output_option
@click.pass_context
def check(
    context: click.Context,
    *,
    target: str,
    inputs: tuple[str, ...],
    plan_file: Path | None,
    scheme: str | None,
    select: str | None,
    ignore: str | None,
    fail_on: str,
    form: str,
    output: Path | None,
) -> None:
    """Predict the signal at every layer from the weights and the graph; nothing is computed."""
    if plan_file and scheme:
        raise click.UsageError("--plan and --scheme both say how the model starts; give one.")
    wanted, unwanted = _codes(select), _codes(ignore)
    given = _read_plan(plan_file) if plan_file else None
    loaded = _load(target, inputs)
    _needs_inputs(loaded, target, "check follows the model's graph")
    made = _plan_of(loaded, scheme) if scheme else given
    report = _chosen(_check_of(loaded, made), wanted, unwanted)
    _report_out(context, report, loaded, form, output, fail_on)


@cli.command(epilog=EPILOG, short_help="Measure the signal at every layer; say what is wrong.")
@target_argument
@input_option
@click.option("--no-backward", is_flag=True, help="Forward only: no gradients.")
@click.option(
    "--loss",
    type=click.Choice(["cross-entropy"]),
    help="Backward from this loss on random classes.",
)
@findings_options
@format_option("table", "json", "md", "github")
@output_option
@click.pass_context
def probe(
    context: click.Context,
    *,
    target: str,
    inputs: tuple[str, ...],
    no_backward: bool,
    loss: str | None,
    select: str | None,
    ignore: str | None,
    fail_on: str,
    form: str,
    output: Path | None,
) -> None:
    """Run the model as it stands and measure the signal at every layer, forward and backward."""
    wanted, unwanted = _codes(select), _codes(ignore)
    loaded = _load(target, inputs)
    _needs_inputs(loaded, target, "probe runs the model")
    report = _chosen(_probe_of(loaded, loss, backward=not no_backward), wanted, unwanted)
    _report_out(context, report, loaded, form, output, fail_on)


@cli.command(short_help="Say what a finding means and what to do.")
@click.argument("code", required=False)
def explain(*, code: str | None) -> None:
    """Say what a finding means, why it is bad, and what to do; without CODE, list all."""
    pages = explanations()
    wanted = (code or "FAN").upper()
    matching = [c for c in pages if c.startswith(wanted)] or [one_of("the code", wanted, pages)]
    if len(matching) == 1:
        click.echo(pages[matching[0]].rstrip())
    else:
        titles = [(c, pages[c].partition("\n")[0].removeprefix(f"# {c}: ")) for c in matching]
        click.echo(table(("code", "what was found"), titles, kinds="lt"))


@cli.command(
    epilog="Exit code: 0 the same values, 1 they differ, 2 usage or could not analyse.",
    short_help="Say what changes from one plan to another.",
)
@click.argument("first")
@click.argument("second")
@input_option
@scheme_option
@format_option("table", "json")
@output_option
@click.pass_context
def diff(
    context: click.Context,
    *,
    first: str,
    second: str,
    inputs: tuple[str, ...],
    scheme: str | None,
    form: str,
    output: Path | None,
) -> None:
    """Say what changes from one plan to another; each is a plan's JSON file or a TARGET."""
    before, after = (_plan_or_target(side, inputs, scheme) for side in (first, second))
    found = before.diff(after)
    emit(json.dumps(found.to_dict(), indent=1) if form == "json" else diff_text(found), output)
    context.exit(int(bool(found)))


DEMO = f"""Run an experiment: networks that fail as PyTorch leaves them, and learn after fanin.

\b
{table(("NAME", ""), experiments.SUMMARIES.items(), width=76, kinds="lt")}
"""


@cli.command(help=DEMO, short_help="Run an experiment.")
@click.argument("name", default=experiments.NAMES[0])
@click.option(
    "--out", type=FILE, default=Path("fanin-demo"), show_default=True, help="Figures go here."
)
@seed_option
@format_option("table", "json")
def demo(*, name: str, out: Path, seed: int, form: str) -> None:
    one_of("NAME", name, experiments.NAMES)
    with redirect_stdout(sys.stderr), progress_bar(f"demo {name}") as progress:
        result = experiments.run(name, out=out, seed=seed, progress=progress)
    click.echo(json.dumps(result.to_dict(), indent=1) if form == "json" else result.text())


# the parts of a verb -------------------------------------------------------------------------


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Run the model's own code: what it prints is talk, what it raises is told as its own."""
    from ._target import told  # noqa: PLC0415 - it loads torch

    try:
        with redirect_stdout(sys.stderr), progress_bar(what):
            yield
    except FaninError:
        raise
    except Exception as error:
        raise TargetError(f"{what} failed: {told(error)}.") from error


def _load(target: str, inputs: Sequence[str]) -> Target:
    from ._target import load_target, parse_inputs  # noqa: PLC0415 - it loads torch

    given = parse_inputs(inputs) if inputs else None
    with _users_code(f"loading {target}"):
        loaded = load_target(target)
    return loaded if given is None else loaded._replace(inputs=given)


def _plan_of(loaded: Target, scheme: str | None, overrides: Sequence[str] = ()) -> InitPlan:
    from . import _api  # noqa: PLC0415 - it loads torch
    from ._override import parse_overrides  # noqa: PLC0415 - it loads numpy

    given = parse_overrides(overrides)
    with _users_code("planning"):
        return _api.plan(loaded.module, loaded.inputs, scheme=scheme or "auto", overrides=given)


def _needs_inputs(loaded: Target, target: str, why: str) -> None:
    if loaded.inputs is None:
        raise TargetError(
            f"{why}, so it needs inputs: let {target} return (module, example_inputs), "
            "or give --input 2x3x32x32."
        )


def _report_out(  # noqa: PLR0917 - what every report is printed with
    context: click.Context,
    report: SignalReport,
    loaded: Target,
    form: str,
    output: Path | None,
    fail_on: str,
) -> None:
    """Print the report and set the exit code."""
    forms: dict[str, Callable[[], str]] = {
        "table": lambda: report_text(report),
        "json": report.to_json,
        "md": lambda: report_markdown(report),
        "github": lambda: "\n".join(github_lines(report.findings, loaded.file, loaded.line)),
    }
    emit(forms[form](), output)
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on != "never" else ()
    context.exit(int(any(f.severity in grave for f in report.findings)))


def _check_of(loaded: Target, plan: InitPlan | None) -> SignalReport:
    from . import _check  # noqa: PLC0415 - it loads torch

    with _users_code("checking"):
        return _check.check(loaded.module, loaded.inputs, plan=plan)


def _probe_of(loaded: Target, loss: str | None, *, backward: bool) -> SignalReport:
    from . import _probe  # noqa: PLC0415 - it loads torch
    from ._target import LOSSES  # noqa: PLC0415 - it loads torch

    with _users_code("probing"):
        return _probe.probe(
            loaded.module, loaded.inputs, loss_fn=LOSSES[loss] if loss else None, backward=backward
        )


def _plan_or_target(spec: str, inputs: Sequence[str], scheme: str | None) -> InitPlan:
    if Path(spec).is_file() or spec.endswith(".json"):
        return _read_plan(Path(spec))
    return _plan_of(_load(spec, inputs), scheme)


def _read_plan(path: Path) -> InitPlan:
    from ._plan import InitPlan  # noqa: PLC0415 - it loads numpy

    try:
        return InitPlan.from_json(path.read_text(encoding="utf-8"))
    except (FaninError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path}: {error}") from error


def _codes(given: str | None) -> tuple[str, ...]:
    """``FAN1,fan203`` as prefixes of known codes."""
    codes = tuple(code.strip().upper() for code in (given or "").split(",") if code.strip())
    known = explanations() if codes else {}
    for code in codes:
        if not any(k.startswith(code) for k in known):
            one_of("a finding's code", code, known)
    return codes


def _chosen(
    report: SignalReport, wanted: tuple[str, ...], unwanted: tuple[str, ...]
) -> SignalReport:
    kept = (f for f in report.findings if not wanted or f.code.startswith(wanted))
    return replace(report, findings=tuple(f for f in kept if not f.code.startswith(unwanted)))


def explanations() -> dict[str, str]:
    """Code -> its page, Markdown whose first line is ``# CODE: title``."""
    from importlib import resources  # noqa: PLC0415 - a tenth of what --help costs

    folder = resources.files("fanin") / "explanations"
    pages = sorted((p for p in folder.iterdir() if p.name.endswith(".md")), key=lambda p: p.name)
    return {p.name.removesuffix(".md"): p.read_text(encoding="utf-8") for p in pages}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None for the process's own.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return cli.main(arguments, prog_name="fanin", standalone_mode=False) or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        complain(
            error.format_message() + (f" Try: {context.command_path} --help" if context else "")
        )
        return error.exit_code
    except click.Abort:
        talk("fanin: interrupted")
        return 130
    except Exception as error:
        if "--traceback" in arguments:
            raise
        complain(str(error) or type(error).__name__)
        return 2
