"""`meshlib check`: validate a folder of YAML, or one file, as Istio's webhook and analyzers do.

Exit code 0: clean, or warnings and infos only. 1: errors. 2: there is no such folder.
"""

import dataclasses
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from meshlib.control.istio.problem import Problem, Severity
from meshlib.printable import printable

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


class Output(StrEnum):
    """How the result is written."""

    TEXT = "text"
    JSON = "json"


def check(
    path: Annotated[Path, typer.Argument(help="A folder of YAML files, or one file.")],
    output: Annotated[Output, typer.Option("--output", "-o", help="text or json.")] = Output.TEXT,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="The namespace of documents that name none.")
    ] = "default",
) -> None:
    """Validate Istio YAML: schema, semantics, and what documents do to each other."""
    from meshlib.control.analysis.analyze import analyze  # all kinds of documents, which the help needs not
    from meshlib.control.sources.files import FileSource

    try:
        loaded = FileSource(path, namespace).load()
    except OSError as error:
        Console(stderr=True).print(f"meshlib check: {printable(str(error))}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    problems = (*loaded.problems, *analyze(loaded.documents, loaded.problems))
    if output is Output.JSON:
        typer.echo(as_json(problems))
    else:
        refused = {(problem.file, problem.document or problem.line) for problem in loaded.errors}
        _print(problems, len(loaded.documents), len(refused))
    if any(problem.severity is Severity.ERROR for problem in problems):
        raise typer.Exit(1)


def as_json(problems: Sequence[Problem]) -> str:
    """A list of objects with the keys of `Problem`: severity, code, message, document, file, line, …"""
    return json.dumps([dataclasses.asdict(problem) for problem in problems], indent=2)


def _print(problems: Sequence[Problem], documents: int, refused: int) -> None:
    console = Console(highlight=False)
    for problem in problems:
        line = printable(str(problem))
        text = Text(line)
        text.stylize(_COLOURS[problem.severity], 0, line.index("]") + 1)
        console.print(text, soft_wrap=True)
    counts = {s: sum(problem.severity is s for problem in problems) for s in Severity}
    told = ", ".join(f"{n} {s.value}{'s' * (n != 1)}" for s, n in counts.items() if n)
    noun = "document is" if documents == 1 else "documents are"
    what = f"{documents} {noun} good, {refused} refused" if refused else f"{documents} {noun} good"
    console.print(f"{what}: {told or 'no problems'}", soft_wrap=True, markup=False)
