"""Prune a whole model: its sites one after another, or all from the dense model, then take what is gone out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import numbers
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.solvers.base import Solver
from osscar_opt.solvers.progress import Tally
from osscar_opt.solvers.registry import get_solver
from osscar_opt.torch.calibration import Calibration
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.layers import find_layer, view_of
from osscar_opt.torch.moments import LayerMoments
from osscar_opt.torch.plan import Width, choose_sites, choose_widths, hold_and_trace
from osscar_opt.torch.pruning import Options, Pruning, dense_parts
from osscar_opt.torch.report import PruneReport
from osscar_opt.torch.scores import MODEL_RULES
from osscar_opt.torch.shrinking import shrink
from osscar_opt.torch.sites import site_problem
from osscar_opt.torch.workfolder import Results

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["collect_problems", "prune_model"]

_ALLOWED = 1e-4  # of 1 + the largest masked output, for float32 and wider
_ROUNDINGS = 8  # epsilons of the same, for half precision


def prune_model(
    model: torch.nn.Module,
    batches: Any,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    keep: int | Mapping[str, int] | None = None,
    multiple: int | Mapping[str, int] = 1,
    method: str | Solver | type[Solver] = "osscar",
    options: Mapping[str, Any] | None = None,
    sites: str | Sequence[str] | None = None,
    order: Literal["sequential", "parallel"] = "sequential",
    targets: Literal["student", "teacher"] = "student",
    damping: float = 1e-2,
    intercept: bool | None = None,
    apply: Literal["shrink", "mask"] = "shrink",
    check: bool = True,
    gap: bool = False,
    time_limit: float | None = None,
    folder: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    coupling: Coupling | None = None,
) -> PruneReport:
    r"""Prune the sites of a model in place: choose units, refit the layers that read them, remove the rest.

    A site's problem is that of the layer(s) reading its units. With X its inputs, W0 and b0 its dense weights and bias,

    .. math::

        \min_{S, W, b} \tfrac{1}{2N} |Y - X_S W - 1 b'|^2 + \tfrac{\rho}{2} |W - W_0|^2, \qquad |S| \le k,

    with these X and Y:

    ============  =========  ==================================  ========================================
    order         targets    X                                   Y
    ============  =========  ==================================  ========================================
    parallel                 inputs in the dense model           the dense layer's outputs on them
    sequential    student    inputs in the model pruned so far   the layer's dense weights on these inputs
    sequential    teacher    inputs in the model pruned so far   the dense layer's outputs in the dense model
    ============  =========  ==================================  ========================================

    Calibration advances block by block where the model is a chain of blocks; every finished site is masked at once (in
    the parallel order: at the end), and at the end all are shrunk.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. Its mode, its hooks and what requires gradients stay as they are.
    batches
        A tensor, a mapping, or an iterable of tensors, mappings, and tuples of positional arguments; positions that a
        two-dimensional ``attention_mask`` hides do not count. Gone through once and held on the CPU.
    sparsity : float, or mapping of str to float, optional
        Share of each site's units that goes. A mapping is by site, pattern or kind; sites that no key fits stay whole.
    keep : int, or mapping of str to int, optional
        In place of `sparsity`: how many units stay.
    multiple : int, or mapping of kind to int, optional
        The number that stays is rounded up to a multiple of it.
    method : str or Solver, optional
        Any registered method, a solver of one's own, or a rule that needs the model: the names in
        `osscar_opt.torch.scores.MODEL_RULES`, such as ``"taylor"``, whose scores are then computed on the batches, in
        the dense model, once, where it lies: `device` has no say in that.
    options : mapping, optional
        Of the method.
    sites : str or sequence of str, optional
        Names, patterns (``"model.layers.*.mlp.*"``) or kinds (``"neurons"``, ``"heads"``, ``"channels"``). None: the
        keys of a mapping if one is given, else all sites that one layer alone reads.
    order, targets : str, optional
        See the table.
    damping : float, optional
        rho relative to the mean diagonal of X'X/N.
    intercept : bool, optional
        Whether biases are refitted too; None: those of layers that have one.
    apply : {"shrink", "mask"}, optional
        "mask" leaves all shapes as they are and writes zeros where "shrink" removes.
    check : bool, optional
        After shrinking, compare the outputs for the first rows (and tokens) of the first batch with those of the masked
        model.
    gap : bool, optional
        Whether to compute a lower bound of every problem, for the report; takes up to `time_limit`, or 60 s, each.
    time_limit : float, optional
        Seconds for the solution of each site's problem.
    folder : path, optional
        Work folder: finished sites are written there, and a later call with the same arguments, on the same dense
        model, goes on from them. Also where hidden states go that take more than 1 GiB.
    device : str or torch.device, optional
        Where blocks are run, one at a time; the rest of the model stays where it is. None: all do.
    progress : bool, optional
        Show one line with the time left on stderr after two seconds; None: only if stderr is a terminal.
    coupling : Coupling, optional
        What goes together, if it is known; None: `trace_coupling` finds out on the first batch.

    Returns
    -------
    PruneReport

    Raises
    ------
    InputError
        When an argument is out of range, or the folder holds another run.
    LayerError
        When a name fits no site (the closest are named), a layer sees NaN or infinity, or no batch reaches it; or when
        shrunk and masked outputs differ, in which case the model is left masked.
    UnknownMethodError, OptionError, UnavailableError, CapabilityError, SolverError
        As `osscar_opt.solve`.
    KeyboardInterrupt
        On Ctrl-C.

    Notes
    -----
    Whatever ends the run early, the model is left consistent: sites that are finished are masked, the others are dense,
    and no site is half written.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> batches = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    >>> report = prune_model(model, batches, sparsity=0.5)
    >>> model[0], model[2]
    (Linear(in_features=5, out_features=4, bias=True), Linear(in_features=4, out_features=3, bias=True))
    """
    began = time.monotonic()
    _require(apply in ("shrink", "mask"), f'apply = {apply!r} must be "shrink" or "mask".')
    rule = MODEL_RULES.get(method) if isinstance(method, str) else None
    placeholder = {} if rule is None else {rule.option: PerProblem({}, rule=str(method))}
    settings = _settings(
        method if rule is None else rule.method,
        {**placeholder, **(options or {})},
        order,
        targets,
        damping,
        intercept,
        gap,
        time_limit,
    )
    held, coupling = _traced(model, batches, coupling)
    chosen = choose_sites(coupling, sites, sparsity if keep is None else keep)
    widths = choose_widths(coupling, chosen, sparsity=sparsity, keep=keep, multiple=multiple)
    pruned = {name: width for name, width in widths.items() if width.pruned}
    _require_layers(model, pruned, intercept)
    if rule is not None and pruned and rule.option not in (options or {}):
        made = rule.make(model, held, coupling=coupling, sites=list(pruned))
        settings = dataclasses.replace(
            settings,
            name=str(method),
            options={**settings.options, rule.option: made},
            computed=frozenset({rule.option}),  # again at every start, and equal up to rounding only
        )
    before = _parameters(model)
    with _run(model, held, pruned, settings, device, folder, progress) as run:
        run.sites()
        checked = _shrink(model, coupling, run, check) if apply == "shrink" and pruned else {}
        return PruneReport(
            rows=run.rows(),
            left_alone=tuple(name for name in widths if name not in pruned),
            method=settings.name,
            order=order,
            targets=targets if order == "sequential" else "student",
            applied=apply,
            parameters_before=before,
            parameters_after=_parameters(model),
            seconds={**run.seconds, "total": time.monotonic() - began},
            passes=run.passes,
            peak_memory=_peak_memory(),
            check=checked,
            options=settings.told,
        )


def collect_problems(
    model: torch.nn.Module,
    batches: Any,
    *,
    sites: str | Sequence[str] | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    keep: int | Mapping[str, int] | None = None,
    multiple: int | Mapping[str, int] = 1,
    damping: float = 1e-2,
    intercept: bool | None = None,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
    coupling: Coupling | None = None,
) -> Iterator[tuple[str, Problem]]:
    """Pose the problems of a dense model's sites, in one pass through its blocks.

    What ``prune_model(order="parallel")`` solves; the model is not changed. A block's problems are handed over before
    the next block is run, so that no more of them than that are in memory.

    Parameters
    ----------
    model, batches, sites
        As for `prune_model`.
    sparsity, keep
        As for `prune_model`, but without either the problems have no limit, for `osscar_opt.Problem.path`, say.
    multiple, damping, intercept, device
        As for `prune_model`.
    folder : path, optional
        For hidden states that take more than 1 GiB.
    progress, coupling
        As for `prune_model`.

    Yields
    ------
    name : str
        Of the site.
    problem : Problem

    Raises
    ------
    InputError, LayerError
        As `prune_model`.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> batches = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    >>> [(name, problem.p, problem.keep) for name, problem in collect_problems(model, batches, sparsity=0.5)]
    [('2', 8, 4)]
    """
    settings = _settings("auto", None, "parallel", "student", damping, intercept, False, None)
    held, coupling = _traced(model, batches, coupling)
    chosen = choose_sites(coupling, sites, sparsity if keep is None else keep)
    if sparsity is None and keep is None:
        widths = {name: Width(site, None) for name, site in chosen.items()}
    else:
        widths = choose_widths(coupling, chosen, sparsity=sparsity, keep=keep, multiple=multiple)
    _require_layers(model, widths, intercept)
    with (
        _run(model, held, widths, settings, device, None, progress, states=folder) as run,
        contextlib.closing(dense_parts(run.calibration, widths, settings, ())) as collected,
    ):
        for site, parts, _ in collected:
            yield site, site_problem(parts, damping=damping, name=site, **widths[site].limits)
            run.tell_done()


@contextlib.contextmanager
def _run(
    model: torch.nn.Module,
    batches: list[Any],
    widths: dict[str, Width],
    settings: Options,
    device: str | torch.device | None,
    folder: str | Path | None,
    progress: bool | None,
    states: str | Path | None = None,
) -> Iterator[Pruning]:
    """All that a run needs, with its line on the terminal."""
    place = None if folder is None else Path(folder)
    consumers = {name: tuple(width.site.consumers) for name, width in widths.items()}
    with contextlib.closing(Tally(len(widths), progress)) as tally:
        calibration = Calibration(
            model,
            batches,
            consumers,
            device=None if device is None else torch.device(device),
            folder=place if states is None else Path(states),
        )
        fingerprint = {} if place is None else _fingerprint(model, calibration, widths, settings)
        results = Results(place, fingerprint, list(widths))
        yield Pruning(calibration, widths, settings, results, tally)


def _shrink(model: torch.nn.Module, coupling: Coupling, run: Pruning, check: bool) -> dict[str, Any]:
    """Shrink what is masked; if that changes the outputs by more than rounding, undo it.

    A model may blow its own rounding up beyond any tolerance: refitted on few rows, one of SmolLM2-135M's size gives
    logits in float32 that are off by 0.01. Outputs that differ are therefore computed once more in float64.
    """
    supports = {name: run.results.get(name).units for name in run.widths}
    batches = run.calibration.batches
    with run.timed("check"):
        masked = batches.first_output() if check else None
    with run.timed("apply"):
        done = shrink(model, coupling, supports)
    if masked is None:
        return {}
    with run.timed("check"):
        try:
            found = _compared(masked, batches.first_output())
        except Exception as error:
            done.undo()
            reason = str(error).strip().partition("\n")[0]
            raise LayerError(
                f"the shrunk model cannot be run ({type(error).__name__}: {reason}), so the model was left masked: its "
                "forward probably has a width written into it, which should be taken from the tensors."
            ) from error
        if found["difference"] <= found["allowed"]:
            return found
        try:
            shrunk = batches.first_output(double=True)
            done.undo()
            found = _compared(batches.first_output(double=True), shrunk)
        except (RuntimeError, TypeError, ValueError):  # not every model can be run in float64
            done.undo()
        if not found["difference"] <= found["allowed"]:
            raise LayerError(
                f"the shrunk model's outputs differ from those of the masked one by {found['difference']:.3g}, where "
                f"{found['allowed']:.3g} is allowed: the model was left masked, so please report how it is built."
            )
        shrink(model, coupling, supports)
    return found


def _compared(masked: torch.Tensor, shrunk: torch.Tensor) -> dict[str, Any]:
    epsilon = torch.finfo(masked.dtype).eps
    part = _ALLOWED if epsilon < _ALLOWED else _ROUNDINGS * epsilon
    same = masked.shape == shrunk.shape
    return {
        "difference": float((masked.double() - shrunk.double()).abs().max()) if same else math.inf,
        "allowed": part * (1.0 + float(masked.abs().max())),
        "dtype": str(masked.dtype).removeprefix("torch."),
    }


# ---------------------------------------------------------------------------------------------------- arguments


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(sentence)


def _settings(
    method: str | Solver | type[Solver],
    options: Mapping[str, Any] | None,
    order: str,
    targets: str,
    damping: float,
    intercept: bool | None,
    gap: bool,
    time_limit: float | None,
) -> Options:
    _require(order in ("sequential", "parallel"), f'order = {order!r} must be "sequential" or "parallel".')
    _require(targets in ("student", "teacher"), f'targets = {targets!r} must be "student" or "teacher".')
    _require(_is_number(damping), f"damping = {damping!r} must be a finite number, at least 0.")
    _require(intercept in (None, True, False), f"intercept = {intercept!r} must be True, False or None.")
    _require(
        time_limit is None or _is_number(time_limit),
        f"time_limit = {time_limit!r} must be a number of seconds, at least 0, or None.",
    )
    solver = get_solver(method, dict(options or {}))
    return Options(
        method=method,
        name=solver.name,
        options={name: getattr(solver, name) for name in options or {}},  # as the solver keeps them
        parallel=order == "parallel",
        teacher=order == "sequential" and targets == "teacher",
        damping=float(damping),
        intercept=intercept,
        gap=bool(gap),
        time_limit=time_limit,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0.0 <= float(value) < math.inf


def _traced(model: Any, batches: Any, coupling: Coupling | None) -> tuple[list[Any], Coupling]:
    if not isinstance(model, torch.nn.Module):
        raise LayerError(f"expected a torch module to prune, got {type(model).__name__}.")
    return hold_and_trace(model, batches, coupling)


def _require_layers(model: torch.nn.Module, widths: Mapping[str, Width], intercept: bool | None) -> None:
    """Refuse what cannot be refitted before anything runs: layers without weights of their own, or without biases."""
    owners: dict[int, set[int]] = {}
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
            names[id(module)] = path
    for width in widths.values():
        for name in width.site.consumers:
            layer = find_layer(model, name)
            view = view_of(layer, name)
            if intercept and not view.has_bias:
                LayerMoments(layer, name, intercept=True)  # says what is missing
            others = [names[owner] for owner in owners.get(id(layer.weight), ()) if owner != id(layer)]
            if others:
                raise LayerError(
                    f"{name} shares its weight with {others[0]}, which refitting would change too: give the layer a "
                    "copy of its own (layer.weight = torch.nn.Parameter(layer.weight.clone())) first."
                )


def _fingerprint(
    model: torch.nn.Module, calibration: Calibration, widths: Mapping[str, Width], settings: Options
) -> dict[str, Any]:
    return {
        "sites": {name: f"{w.keep} of {w.site.n} {w.site.kind}" for name, w in widths.items()},
        **settings.told,
        "model": _weights_digest(model),
        "batches": calibration.batches.digest(),
    }


def _weights_digest(model: torch.nn.Module) -> str:
    """Cheap hash of all parameters: shapes, dtypes, and evenly spaced entries."""
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 1024)].to("cpu", torch.float64)
        sha.update(f"{name}{parameter.dtype}{tuple(parameter.shape)}".encode())
        sha.update(sample.contiguous().numpy().tobytes())
    return sha.hexdigest()[:32]


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _peak_memory() -> int:
    """Largest size of the process so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
