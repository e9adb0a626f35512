r"""A site: units that one or several layers read, and that stay or go for all of them at once.

Several consumers i of the same units (the residual channels that two convolutions read, say) make one problem, the
sum of theirs:

.. math::

    \min_{W_1, W_2, \dots} \; \sum_i \tfrac{1}{2 N_i} |Y_i - X_i W_i|^2 + \tfrac{\rho_i}{2} |W_i - W_{0i}|^2,

with gram and cross block diagonal over the consumers, and the rows of one unit in all of them forming one group. Rows
of a consumer that belong to no unit of the site (other inputs that were concatenated) always stay; together they are
one more group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations.groups import Groups
from osscar_opt.formulations.moments import fields_from_moments
from osscar_opt.torch.moments import LayerMoments

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem
    from osscar_opt.formulations.solution import Solution

__all__ = ["SitePart", "SiteSolution", "site_problem", "site_solution"]

SitePart = tuple[LayerMoments, NDArray[Any]]
"""A consumer, and the unit of each of its input channels: 0..n-1, or -1 where it is none of this site's."""


@dataclass(frozen=True)
class SiteSolution:
    """A solution of a site's problem, taken apart again.

    Attributes
    ----------
    units : (n,) mask
        True = kept.
    layers : dict of str to (weights, bias)
        For each consumer its refitted weights (p, q), zero on the inputs that go, and its bias (q,), or None where
        the bias stays as it is.

    Examples
    --------
    >>> SiteSolution(np.array([True, False]), {"down": (np.array([[1.0], [0.0]]), None)}).units.sum()
    np.int64(1)
    """

    units: BoolArray
    layers: dict[str, tuple[FloatArray, FloatArray | None]]


def site_problem(
    parts: Sequence[SitePart],
    *,
    keep: int | None = None,
    damping: float = 1e-2,
    costs: Any = None,
    budget: float | None = None,
    always_keep: Any = None,
    always_remove: Any = None,
    blocks: Any = None,
    block_keep: Any = None,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Problem:
    """Pose the problem of which units of a site stay.

    Parameters
    ----------
    parts : sequence of (LayerMoments, (channels,) array of int)
        The consumers, each with the unit of every input channel.
    keep : int, optional
        How many of the n units may stay.
    damping : float, optional
        Relative to the mean diagonal of each consumer's own second moment.
    costs, budget, always_keep, always_remove, blocks, block_keep
        Further limits as of `Problem`, in terms of the n units. Rows that are none of the site's are a further group,
        number n, which is always kept and for which the limits make room.
    name : str, optional
        By default that of the first consumer.
    provenance : mapping, optional

    Returns
    -------
    Problem
        With n groups, or n + 1 where some rows are none of the site's.

    Raises
    ------
    InputError
        When units and channels disagree in number, or a unit is nobody's.
    LayerError
        When a consumer saw no row, or two of them have the same name.

    Examples
    --------
    >>> import torch
    >>> layers = {"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(6, 2, bias=False)}
    >>> moments = {name: LayerMoments(layer, name) for name, layer in layers.items()}
    >>> moments["a"].add(torch.eye(4))
    >>> moments["b"].add(torch.eye(6))
    >>> units = np.arange(4)
    >>> problem = site_problem([(moments["a"], units), (moments["b"], np.append(units, [-1, -1]))], keep=2)
    >>> problem
    Problem('a', p=10, q=5, groups=Groups(n=5, sizes=2), keep=3)
    """
    from osscar_opt.formulations.problem import Problem

    unit_of_row, n = _units(parts)
    rest = bool((unit_of_row < 0).any())
    limits = {
        "costs": costs,
        "budget": budget,
        "always_keep": always_keep,
        "always_remove": always_remove,
        "blocks": blocks,
        "block_keep": block_keep,
    }
    if rest:
        keep, limits = _with_room(keep, limits, n)
    fields = _joined([_fields(moments, damping) for moments, _ in parts])
    first = parts[0][0]
    return Problem(
        **fields,
        groups=Groups(np.where(unit_of_row < 0, n, unit_of_row)),
        keep=keep,
        **limits,
        name=first.name if name is None else name,
        provenance={
            "source": "torch layers",
            "layers": [moments.describe() for moments, _ in parts],
            "damping": damping,
            **(provenance or {}),
        },
        copy=False,
    )


def site_solution(solution: Solution, parts: Sequence[SitePart]) -> SiteSolution:
    """Take a solution of a site's problem apart into what each consumer is given.

    Parameters
    ----------
    solution : Solution
        Of the problem that `site_problem` made of these parts.
    parts : sequence of (LayerMoments, (channels,) array of int)

    Returns
    -------
    SiteSolution

    Raises
    ------
    LayerError
        When the solution is not one of these parts.

    Examples
    --------
    >>> import torch
    >>> moments = LayerMoments(torch.nn.Linear(4, 3), "fc")
    >>> moments.add(torch.eye(4))
    >>> parts = [(moments, np.arange(4))]
    >>> apart = site_solution(site_problem(parts, keep=2).solve("greedy"), parts)
    >>> int(apart.units.sum()), apart.layers["fc"][0].shape, apart.layers["fc"][1].shape
    (2, (4, 3), (3,))
    """
    unit_of_row, n = _units(parts)
    problem = solution.problem
    shape = sum(m.view.width for m, _ in parts), sum(m.view.outputs for m, _ in parts)
    wanted = np.where(unit_of_row < 0, n, unit_of_row)
    if problem.cross.shape != shape or not np.array_equal(problem.groups.group_of_row, wanted):
        raise LayerError(
            f"the solution has weights of shape {problem.cross.shape}, which are not those of the layers "
            f"{', '.join(m.name for m, _ in parts)}: pass the parts its problem was made of."
        )
    weights = np.where(problem.groups.row_mask(solution.support)[:, None], solution.weights, 0.0)
    intercept = solution.intercept
    layers: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    row = column = 0
    for moments, _ in parts:
        rows = slice(row, row + moments.view.width)
        columns = slice(column, column + moments.view.outputs)
        row, column = rows.stop, columns.stop
        bias = intercept[columns].copy() if moments.intercept and intercept is not None else None
        layers[moments.name] = (weights[rows, columns].copy(), bias)
    return SiteSolution(np.asarray(solution.support[:n], dtype=bool).copy(), layers)


def _units(parts: Sequence[SitePart]) -> tuple[IntArray, int]:
    """Unit of each row of all consumers, one after another, and the number of units."""
    if not parts:
        raise InputError("a site needs at least one consumer.")
    names = [moments.name for moments, _ in parts]
    if len(set(names)) < len(names):
        raise LayerError(f"two consumers have the same name ({', '.join(names)}): name each LayerMoments.")
    rows = []
    for moments, units in parts:
        given = np.asarray(units)
        channels = moments.view.channels
        if given.shape != (channels,) or not np.issubdtype(given.dtype, np.integer):
            raise InputError(
                f"{moments.name} has {channels} input channels, and their units have shape {given.shape} and type "
                f"{given.dtype}: give a whole number for each channel."
            )
        rows.append(np.repeat(given.astype(np.int64), moments.view.rows_per_channel))
    unit_of_row = np.concatenate(rows)
    n = int(unit_of_row.max(initial=-1)) + 1
    nobody = np.setdiff1d(np.arange(n), unit_of_row)
    if nobody.size or n == 0:
        what = f"unit {nobody[0]} is" if nobody.size else "all units are"
        raise InputError(f"{what} read by none of {', '.join(names)}: number them 0..n-1 without gaps.")
    return unit_of_row, n


def _with_room(keep: int | None, limits: dict[str, Any], n: int) -> tuple[int | None, dict[str, Any]]:
    """Limits on n units as limits on those and one more group, which always stays and costs nothing."""
    room = dict(limits)
    for name in ("always_keep", "always_remove"):
        mask = np.zeros(n + 1, dtype=bool)
        if limits[name] is not None:
            given = np.asarray(limits[name])
            mask[np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)] = True
        room[name] = mask
    room["always_keep"][n] = True
    if limits["costs"] is not None:
        room["costs"] = np.append(np.asarray(limits["costs"], dtype=np.float64), 0.0)
    if limits["blocks"] is not None:
        of_unit = np.asarray(limits["blocks"], dtype=np.int64)
        own = int(of_unit.max(initial=-1)) + 1
        if limits["block_keep"] is not None:
            kept = np.asarray(limits["block_keep"], dtype=np.int64)
            own = max(own, len(kept))
            room["block_keep"] = np.append(kept, 1)
        room["blocks"] = np.append(of_unit, own)
    return None if keep is None else keep + 1, room


def _fields(moments: LayerMoments, damping: float) -> dict[str, Any]:
    """Damped gram, cross, dense weights, constant and means of one consumer; cross is None if it is gram @ dense."""
    parts = moments.parts()
    fields = fields_from_moments(
        parts["second_moment"],
        parts["weights"],
        parts.get("cross_moment"),
        parts.get("target_energy"),
        damping,
        copy=False,
    )
    return fields | {name: parts.get(name) for name in ("input_mean", "target_mean")}


def _joined(consumers: list[dict[str, Any]]) -> dict[str, Any]:
    """Arguments of one problem that is the sum of several over separate weights."""
    if len(consumers) == 1:
        return consumers[0]
    shapes = [fields["dense_weights"].shape for fields in consumers]
    p, q = (sum(sizes) for sizes in zip(*shapes, strict=True))
    gram, dense, cross = np.zeros((p, p)), np.zeros((p, q)), np.zeros((p, q))
    means = np.zeros(p), np.zeros(q)
    same = all(fields["cross"] is None for fields in consumers)
    centred = any(fields["input_mean"] is not None for fields in consumers)
    constant = 0.0
    row = column = 0
    for fields, (height, width) in zip(consumers, shapes, strict=True):
        rows, columns = slice(row, row + height), slice(column, column + width)
        row, column = rows.stop, columns.stop
        gram[rows, rows] = fields["gram"]
        dense[rows, columns] = fields["dense_weights"]
        own = fields["cross"]
        if own is None and not same:
            own = fields["gram"] @ fields["dense_weights"]
            constant += 0.5 * float(np.vdot(own, fields["dense_weights"]))
        elif own is not None:
            constant += fields["constant"]
        if own is not None:
            cross[rows, columns] = own
        if fields["input_mean"] is not None:  # elsewhere zeros, whose intercept is not used
            means[0][rows], means[1][columns] = fields["input_mean"], fields["target_mean"]
    return {
        "gram": gram,
        "cross": None if same else cross,
        "dense_weights": dense,
        "constant": None if same else constant,
        "input_mean": means[0] if centred else None,
        "target_mean": means[1] if centred else None,
    }
