"""The command line: `meshlib demo|control|serve|gateway|check|explain|status|bootstrap|ca|version`.

One file a command.

Law: a mistake of the user is one sentence and an exit status, never a traceback. Exit 2 is for
arguments and settings, 1 for what went wrong afterwards.
"""

import sys

USAGE, FAILED = 2, 1


def main() -> None:
    """Runs the command that `sys.argv` names."""
    try:
        from meshlib.cli.commands import app
        from meshlib.errors import ConfigError, MeshError
    except ModuleNotFoundError as error:
        _missing(error)
    try:
        app(prog_name="meshlib")
    except ModuleNotFoundError as error:
        _missing(error)
    except MeshError as error:
        from meshlib.cli.foreign import paragraph

        print(f"meshlib: {paragraph(str(error))}", file=sys.stderr)
        sys.exit(USAGE if isinstance(error, ConfigError) else FAILED)


def _missing(error: ModuleNotFoundError) -> None:
    """Says which extra brings a library that is not installed; any other missing module is a bug."""
    library = (error.name or "").partition(".")[0]
    if library in {"", "meshlib"}:
        raise error
    extra = "demo" if library in {"starlette", "uvicorn", "meshlib_bookinfo"} else "control"
    print(f"meshlib: {library} is not installed; run: pip install 'meshlib[{extra}]'", file=sys.stderr)
    sys.exit(FAILED)
