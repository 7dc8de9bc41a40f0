"""What leaves the process: results on stdout or in files, talk on stderr, GitHub's annotations."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import MissingExtraError, one_of
from ._tables import wrap

if TYPE_CHECKING:
    from ._report import Finding

SEVERITIES = ("error", "warning")  # from the gravest
WEIGHT_FILES = (".safetensors", ".pt", ".pth")


def emit(text: str, output: Path | None) -> None:
    """Write to the file, else to stdout; there severities are coloured if a person looks."""
    if output is not None:
        write_whole(output, lambda path: path.write_text(text + "\n", encoding="utf-8"))
        talk(f"wrote {output}")
        return
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        text = re.sub(r"\bFAN\d+ (error|warning)\b", _coloured, text)
    click.echo(text)


def _coloured(match: re.Match[str]) -> str:
    return click.style(match[0], fg="red" if match[1] == "error" else "yellow", bold=True)


def talk(text: str) -> None:
    """A sentence on stderr."""
    click.echo("\n".join(wrap(text)), err=True)


def complain(message: str) -> None:
    """``fanin: `` and the message on stderr, its own line breaks kept."""
    first, *more = message.splitlines() or [""]
    lines = wrap(first, first="fanin: ", rest="  ")
    lines += [line for text in more for line in wrap(text, first="  ")]
    click.echo("\n".join(lines), err=True)


def write_whole(output: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``output``, then put it in its place: a failure leaves no half file."""
    draft = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        write(draft)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


def weights_writer(output: Path) -> Callable[[Any, Path, dict[str, str]], object]:
    """What writes (module, path, metadata) in the format that ``output`` ends in.

    Raises:
        InvalidValueError: an unknown ending.
        MissingExtraError: safetensors is not installed.
        FileNotFoundError: no such folder.
    """
    one_of("the end of -o", output.suffix, WEIGHT_FILES)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"no folder {output.parent} to write {output.name} in.")
    if output.suffix != ".safetensors":
        import torch  # noqa: PLC0415 - heavy

        return lambda module, path, _: torch.save(module.state_dict(), path)
    try:
        from safetensors.torch import save_model  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise MissingExtraError("writing .safetensors", "safetensors", "safetensors") from error
    return lambda module, path, about: save_model(module, str(path), {"format": "pt", **about})


def github_lines(
    findings: tuple[Finding, ...], file: str | None, line: int | None
) -> Iterator[str]:
    """GitHub's workflow commands: findings stand at the factory's line in the diff view."""
    for f in findings:
        level = f.severity if f.severity in SEVERITIES else "notice"
        place = f"file={_escaped(os.path.relpath(file), ':,')},line={line}," if file else ""
        text = f"{f.where}: {f.message}\nwhy: {f.why}\nfix: {f.fix}"
        yield f"::{level} {place}title={f.code}::{_escaped(text)}"


def _escaped(text: str, also: str = "") -> str:
    return re.sub(f"[%\r\n{also}]", lambda m: f"%{ord(m[0]):02X}", text)
