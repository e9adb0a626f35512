"""What all commands share: output, errors as one line, exit status."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from osscar_opt.errors import InputError, OsscarError, SolverError, UnavailableError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "GuardedGroup",
    "Threads",
    "grid",
    "patience",
    "print_json",
    "print_version",
    "progress_bar",
    "require_writable",
    "say",
    "stdout",
    "table",
]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _limit_threads(ctx: typer.Context, n: int | None) -> int | None:
    """Limit the threads of the process until the command is over."""
    if n is not None:
        from osscar_opt.linalg.threads import threads

        ctx.with_resource(threads(n))
    return n


Threads = Annotated[
    int | None,
    typer.Option(
        callback=_limit_threads,
        envvar="OSSCAR_OPT_THREADS",
        help="Threads that BLAS, OpenMP and torch use; their own default otherwise.",
    ),
]
"""For every command that computes: a parameter ``threads: Threads = None`` does all there is to do."""


class GuardedGroup(TyperGroup):
    """A group of commands that turns errors into one line on standard error and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; only --debug lets an error through as a traceback."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted.")
            ctx.exit(INTERRUPTED)
        except Exception as error:  # whatever it is, a user gets a sentence; --debug shows the rest
            if ctx.params.get("debug") or _is_the_parsers(error):
                raise
            say(_sentence(error))
            ctx.exit(1 if _is_failure(error) else 2)


def say(message: str) -> None:
    """Print a line for people on standard error."""
    typer.echo(f"osscar-opt: {message}", err=True)


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def stdout() -> Console:
    """Make a console for results; numbers keep their plain colour."""
    from rich.console import Console

    return Console(highlight=False)


def table(title: str, columns: Iterable[tuple[str, str]]) -> Table:
    """Make an empty table with (name, "left" or "right") columns; no number and no row's name is broken."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (name, justify) in enumerate(columns):
        whole = number == 0 or justify == "right"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=whole)  # type: ignore[arg-type]
    return made


def grid(rows: Iterable[tuple[str, object]]) -> Table:
    """Make a two-column listing of names and values."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, Text(str(value)))
    return made


@contextlib.contextmanager
def patience(title: str) -> Iterator[None]:
    """Say on standard error what is going on, if that is a terminal and the block takes longer than two seconds."""
    if not sys.stderr.isatty():
        yield
        return
    with contextlib.ExitStack() as shown:

        def show() -> None:
            from rich.console import Console

            shown.enter_context(Console(stderr=True).status(title))

        timer = threading.Timer(2.0, show)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # so that what it shows is taken down again


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while a block runs, if that is a terminal; hands over a function to move it."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_version(wanted: bool) -> None:
    """Print the version and stop, for the eager option --version."""
    if wanted:
        from osscar_opt import __version__

        typer.echo(f"osscar-opt {__version__}")
        raise typer.Exit


def require_writable(path: Path | None) -> None:
    """Refuse an output that cannot be written before work goes into it."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory.")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no directory {path.parent}.")


def _is_the_parsers(error: Exception) -> bool:
    """Whether this is how the command-line parser itself ends, or a reader of our output has gone away."""
    ours = (typer.Exit, typer.Abort, BrokenPipeError)
    return isinstance(error, ours) or type(error).__module__.startswith(("click.", "typer."))


def _is_failure(error: Exception) -> bool:
    """Whether a run failed, as opposed to a wrong call."""
    return isinstance(error, SolverError | UnavailableError) or not isinstance(error, OsscarError)


def _sentence(error: Exception) -> str:
    if isinstance(error, OsscarError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error}."
    return f"internal error, {type(error).__name__}: {error} (osscar-opt --debug ... shows where)."


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"osscar-opt: warning: {message}\n")
