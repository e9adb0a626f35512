"""The run behind `osscar_opt.torch.prune_model`: collect, solve and write, site by site."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from osscar_opt.formulations.solution import Termination
from osscar_opt.solvers.base import Solver
from osscar_opt.solvers.progress import Tally
from osscar_opt.solvers.referee import solve
from osscar_opt.torch.apply import write_layer
from osscar_opt.torch.calibration import STUDENT, TEACHER, Calibration, Step
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.moments import LayerMoments
from osscar_opt.torch.plan import Width
from osscar_opt.torch.report import SiteRow
from osscar_opt.torch.sites import site_problem, site_solution
from osscar_opt.torch.watch import LayerCall
from osscar_opt.torch.workfolder import Results, SiteResult

if TYPE_CHECKING:
    from osscar_opt.formulations.solution import Solution
    from osscar_opt.torch.sites import SitePart

__all__ = ["Options", "Pruning", "dense_parts"]

_AT_ONCE = 2**31  # bytes of Gram matrices that are collected in one pass
_BOUND_SECONDS = 60.0


@dataclass(frozen=True)
class Options:
    """What a caller asked for, checked.

    Examples
    --------
    >>> Options("osscar", "osscar").told["order"]
    'sequential'
    """

    method: str | Solver | type[Solver]
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    computed: frozenset[str] = frozenset()
    parallel: bool = False
    teacher: bool = False
    damping: float = 1e-2
    intercept: bool | None = None
    gap: bool = False
    time_limit: float | None = None

    @property
    def told(self) -> dict[str, Any]:
        """As JSON can hold it.

        Examples
        --------
        >>> Options("osscar", "osscar").told["method"]
        'osscar'
        """
        return {
            "method": self.method if isinstance(self.method, str) else repr(self.method),
            "options": {
                name: "computed from the model" if name in self.computed else repr(value)
                for name, value in sorted(self.options.items())
            },
            "order": "parallel" if self.parallel else "sequential",
            "targets": "teacher" if self.teacher else "student",
            "damping": self.damping,
            "intercept": self.intercept,
            "gap": self.gap,
            "time_limit": self.time_limit,
        }


class Pruning:
    """A run: what is finished, and what it took.

    Attributes
    ----------
    results : Results
    seconds : dict of str to float
    """

    def __init__(
        self,
        calibration: Calibration,
        widths: Mapping[str, Width],
        settings: Options,
        results: Results,
        tally: Tally,
    ) -> None:
        self.calibration = calibration
        self.widths = widths
        self.results = results
        self.seconds = dict.fromkeys(("collect", "advance", "solve", "apply", "check"), 0.0)
        self._settings = settings
        self._tally = tally
        self._done = 0
        self._warned = False
        self._finished = self._already_finished()
        self._dense = _DenseWeights(calibration.model)
        calibration.tick = lambda: tally.look(self._done, 1)

    @property
    def passes(self) -> dict[str, int]:
        """How often blocks were run."""
        counts = dataclasses.asdict(self.calibration.passes)
        return {name: count for name, count in counts.items() if name != "seconds"}

    def rows(self) -> tuple[SiteRow, ...]:
        """The report's rows, once all sites are finished."""
        return tuple(
            SiteRow(**self.results.get(name).row, resumed=name in self._finished) for name in self.widths
        )

    def tell_done(self) -> None:
        """Count a site as done."""
        self._done += 1
        self._tally.look(self._done, 1)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the inside takes to a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - began

    def sites(self) -> None:
        """Prune all sites: at the end, and whatever ends it early, those that are finished are masked."""
        if self._settings.parallel:
            self._in_parallel()
        else:
            self._in_sequence()

    # ------------------------------------------------------------------------------------------------ orders

    def _already_finished(self) -> set[str]:
        """Sites finished by an earlier run; in the sequential order, later ones rest on all before them."""
        finished: set[str] = set()
        for name in self.widths:
            if name in self.results:
                finished.add(name)
            elif not self._settings.parallel:
                break
        return finished

    def _in_parallel(self) -> None:
        self._done = len(self._finished)
        try:
            collected = dense_parts(self.calibration, self.widths, self._settings, self._finished)
            with contextlib.closing(collected):
                for site, parts, seconds in collected:
                    self.seconds["collect"] += seconds
                    self._solve(site, parts, seconds)
        finally:  # not before: what is collected is the dense model's
            for site in self.widths:
                if site in self.results:
                    self._write(self.results.get(site))

    def _in_sequence(self) -> None:
        teacher = self._settings.teacher
        if len(self._finished) == len(self.widths):
            for site in self.widths:
                self._take(site, teacher=False)
            return
        walk = self.calibration.walk(teacher=teacher, dense=self._dense.inside)
        with contextlib.closing(walk):
            for step in walk:
                advanced = self._through(step, teacher)
                with self.timed("advance"):
                    streams = (STUDENT, TEACHER) if teacher and not advanced else (STUDENT,)
                    self.calibration.advance(step, streams)

    def _through(self, step: Step, teacher: bool) -> bool:
        """Prune the sites of a block; whether the dense stream went on to the next block meanwhile."""
        pending = [site for site in step.sites if site not in self._finished]
        for site in step.sites:
            if site in self._finished:
                self._take(site, teacher)
                continue
            began = time.monotonic()
            parts = parts_of(self.calibration.model, self.widths[site], self._settings)
            with self.timed("collect"):
                self._collect(step, site, parts, last=site == pending[-1])
            solved = self._solve(site, parts, time.monotonic() - began)
            self._write(solved, remember=teacher)
        return bool(pending) and step.keep is not None

    def _collect(self, step: Step, site: str, parts: Sequence[SitePart], *, last: bool) -> None:
        moments = {part.name: part for part, _ in parts}
        for batch, mask in enumerate(self.calibration.batches.masks):
            taught: dict[str, list[LayerCall]] = defaultdict(list)
            if self._settings.teacher:

                def learn(name: str, call: LayerCall, taught: dict[str, list[LayerCall]] = taught) -> None:
                    # a pass that goes on may write into them later
                    taught[name].append(dataclasses.replace(call, inputs=call.inputs.clone()))

                self.calibration.look_at(step, [site], learn, batch, stream=TEACHER, advance=last)

            def add(name: str, call: LayerCall, taught: Any = taught, mask: Any = mask) -> None:
                moments[name].add(call, taught[name].pop(0) if taught[name] else None, mask=mask)

            self.calibration.look_at(step, [site], add, batch)

    # ----------------------------------------------------------------------------------------------- one site

    def _solve(self, site: str, parts: Sequence[SitePart], collecting: float) -> SiteResult:
        began = time.monotonic()
        settings, width = self._settings, self.widths[site]
        with self.timed("solve"):
            with warnings.catch_warnings():
                if self._warned:  # once is enough; the report has every site's number of rows
                    warnings.filterwarnings("ignore", message=".*was calibrated on", category=UserWarning)
                problem = site_problem(parts, damping=settings.damping, name=site, **width.limits)
            rows = parts[0][0].rows
            self._warned = self._warned or rows < problem.p
            solution = solve(
                problem, settings.method, time_limit=settings.time_limit, progress=False, **settings.options
            )
            if solution.termination is Termination.INTERRUPTED:
                raise KeyboardInterrupt  # its best so far is not what an uninterrupted run would find
            bound = problem.lower_bound(settings.time_limit or _BOUND_SECONDS) if settings.gap else None
            if bound is not None and bound.termination is Termination.INTERRUPTED:
                raise KeyboardInterrupt
            found = site_solution(solution, parts)
            layers = {}
            for name, (weights, bias) in found.layers.items():
                dtype = next(part.view.dtype for part, _ in parts if part.name == name)
                layers[name] = (_cast(weights, dtype), None if bias is None else _cast(bias, dtype))
        row = {
            "site": site,
            "kind": width.site.kind,
            "n": width.site.n,
            "kept": int(found.units.sum()),
            "rows": rows,
            **_values(solution),
            "bound": None if bound is None else float(bound.value),
            "gap": None if bound is None else float(bound.gap(solution.objective)),
            "collecting": collecting,
            "solving": time.monotonic() - began,
        }
        result = SiteResult(site, np.asarray(found.units, dtype=bool), layers, row)
        with self.timed("apply"):
            self.results.put(result)
        self.tell_done()
        return result

    def _take(self, site: str, teacher: bool) -> None:
        """Write what an earlier run found."""
        self._write(self.results.get(site), remember=teacher)
        self.tell_done()

    def _write(self, result: SiteResult, *, remember: bool = False) -> None:
        """Write all layers of a site, or none."""
        with self.timed("apply"):
            model = self.calibration.model
            before = _DenseWeights(model)
            try:
                for name, (weights, bias) in result.layers.items():
                    before.remember(name)
                    if remember:
                        self._dense.remember(name)
                    level = None if bias is None else bias.double().numpy()
                    write_layer(find_layer(model, name), weights.double().numpy(), level, name)
            except BaseException:
                before.restore()
                raise


class _DenseWeights:
    """Copies of layers' weights and biases, to run a model as it was."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._copies: dict[str, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}

    def remember(self, name: str) -> None:
        layer = find_layer(self._model, name)
        own = [
            value
            for value in (layer._parameters.get("weight"), layer._parameters.get("bias"))
            if value is not None
        ]
        self._copies.setdefault(name, [(parameter, parameter.detach().clone()) for parameter in own])

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put the copies in place of what is there; nothing is copied but what is on another device."""
        held = [pair for pairs in self._copies.values() for pair in pairs]
        now = [parameter.data for parameter, _ in held]
        try:
            for parameter, copy in held:
                parameter.data = copy.to(parameter.device)
            yield
        finally:
            for (parameter, _), data in zip(held, now, strict=True):
                parameter.data = data

    def restore(self) -> None:
        with torch.no_grad():
            for pairs in self._copies.values():
                for parameter, copy in pairs:
                    parameter.copy_(copy)


def parts_of(model: torch.nn.Module, width: Width, settings: Options) -> list[SitePart]:
    """Empty moments of every layer that reads a site.

    Examples
    --------
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> site = trace_coupling(model, torch.zeros(4, 5)).sites["2"]
    >>> [(moments.name, units.shape) for moments, units in parts_of(model, Width(site, 4), Options("auto", "auto"))]
    [('2', (8,))]
    """
    return [
        (
            LayerMoments(
                find_layer(model, name), name, intercept=settings.intercept, teacher=settings.teacher
            ),
            np.asarray(units),
        )
        for name, units in width.site.consumers.items()
    ]


def dense_parts(
    calibration: Calibration, widths: Mapping[str, Width], settings: Options, finished: Collection[str]
) -> Generator[tuple[str, list[SitePart], float]]:
    """Moments of all sites in the model as it is, in one pass; it must not be changed meanwhile.

    Yields
    ------
    site : str
    parts : list
    seconds : float
        That collecting them took.

    Examples
    --------
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> widths = {"2": Width(trace_coupling(model, torch.zeros(4, 5)).sites["2"], 4)}
    >>> calibration = Calibration(model, torch.ones(4, 5), {"2": ["2"]})
    >>> [(site, parts[0][0].rows) for site, parts, _ in dense_parts(calibration, widths, Options("auto", "auto"), ())]
    [('2', 4)]
    """
    last = next((site for site in reversed(list(widths)) if site not in finished), None)
    with contextlib.closing(calibration.walk()) as walk:
        for step in walk:
            if last is None:
                return
            chunks = list(_chunks([site for site in step.sites if site not in finished], widths))
            for number, chunk in enumerate(chunks):
                began = time.monotonic()
                parts = {site: parts_of(calibration.model, widths[site], settings) for site in chunk}
                moments = {(part.name): part for site in chunk for part, _ in parts[site]}

                for batch, mask in enumerate(calibration.batches.masks):

                    def add(name: str, call: LayerCall, moments: Any = moments, mask: Any = mask) -> None:
                        moments[name].add(call, mask=mask)

                    calibration.look_at(step, chunk, add, batch, advance=number == len(chunks) - 1)
                del moments
                seconds = (time.monotonic() - began) / len(chunk)
                for site in chunk:
                    yield site, parts.pop(site), seconds
                    if site == last:
                        return
            if not chunks:
                calibration.advance(step)


def _chunks(sites: Sequence[str], widths: Mapping[str, Width]) -> Iterator[list[str]]:
    """Sites whose Gram matrices fit into memory together."""
    chunk: list[str] = []
    size = 0
    for site in sites:
        own = _bytes(widths[site])
        if chunk and size + own > _AT_ONCE:
            yield chunk
            chunk, size = [], 0
        chunk.append(site)
        size += own
    if chunk:
        yield chunk


def _bytes(width: Width) -> int:
    """Of a site's Gram matrices, but for the positions of convolution kernels."""
    return sum(8 * len(units) ** 2 for units in width.site.consumers.values())


def _cast(values: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(dtype)


def _values(solution: Solution) -> dict[str, Any]:
    relative = float(solution.relative)
    return {
        "objective": float(solution.objective),
        "relative": relative if np.isfinite(relative) else None,
        "termination": str(solution.termination),
        "method": solution.method,
    }
