"""What was pruned, how well, and what it took."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from osscar_opt.formulations.solution import new_axis

__all__ = ["PruneReport", "SiteRow"]

_COLUMNS = ("site", "kind", "n", "kept", "relative", "gap", "collect s", "solve s", "termination")


@dataclass(frozen=True)
class SiteRow:
    """One site of a report.

    Attributes
    ----------
    site, kind : str
    n, kept : int
        Units before and after.
    rows : int
        Calibration rows: positions of the batches that are no padding.
    objective : float
        Of the layer's problem.
    relative : float or None
        Divided by that of keeping nothing.
    bound, gap : float or None
        A lower bound of the objective and the relative gap to it, where they were asked for.
    collecting, solving : float
        Seconds.
    termination, method : str
    resumed : bool
        Whether it was finished by an earlier run in the same folder.

    Examples
    --------
    >>> SiteRow("fc2", "neurons", 8, 6, 100, 0.5, 0.01, None, None, 1.0, 0.1, "completed", "greedy").kept
    6
    """

    site: str
    kind: str
    n: int
    kept: int
    rows: int
    objective: float
    relative: float | None
    bound: float | None
    gap: float | None
    collecting: float
    solving: float
    termination: str
    method: str
    resumed: bool = False


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What `osscar_opt.torch.prune_model` returns.

    Attributes
    ----------
    rows : tuple of SiteRow
        The pruned sites, in the order in which they were pruned.
    left_alone : tuple of str
        Sites that were chosen and lost nothing, because all their units stay.
    method, order, targets, applied : str
        As they were asked for; `applied` is "mask" or "shrink".
    parameters_before, parameters_after : int
        Of the whole model, tied ones once; masking leaves them as they are.
    seconds : dict of str to float
        Wall time in parts: "collect" (running blocks to see what enters layers, with their Gram matrices), "advance"
        (running blocks to get the next one's inputs), "solve", "apply", "check", and "total".
    passes : dict of str to int
        Runs of one block on one batch, "full" to its end or "short" up to the site; runs of the whole "model", where
        there are no blocks; and "records", runs in which no block computed anything.
    peak_memory : int
        Largest size of the process so far, in bytes.
    check : dict
        With ``apply="shrink"`` and ``check=True``: the largest "difference" between masked and shrunk outputs
        for the first rows (and tokens) of the first batch, the "allowed" one, and the dtype.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch.prune import prune_model
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> batches = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    >>> report = prune_model(model, batches, sparsity=0.5)
    >>> report.rows[0].kept, report.parameters_before, report.parameters_after
    (4, 75, 39)
    """

    rows: tuple[SiteRow, ...]
    left_alone: tuple[str, ...]
    method: str
    order: str
    targets: str
    applied: str
    parameters_before: int
    parameters_after: int
    seconds: dict[str, float]
    passes: dict[str, int]
    peak_memory: int
    check: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; numbers that are not finite are None.

        Examples
        --------
        >>> report = PruneReport((), (), "osscar", "parallel", "student", "mask", 9, 9, {}, {}, 0)
        >>> report.to_dict()["order"]
        'parallel'
        """
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a JSON file.

        Examples
        --------
        >>> import tempfile
        >>> report = PruneReport((), (), "osscar", "parallel", "student", "mask", 9, 9, {}, {}, 0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.save(f"{folder}/report.json")
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def table(self) -> str:
        """The rows and the totals as text.

        Examples
        --------
        >>> row = SiteRow("fc2", "neurons", 8, 6, 100, 0.5, 0.01, None, None, 1.0, 0.1, "completed", "greedy")
        >>> report = PruneReport((row,), (), "greedy", "parallel", "student", "mask", 99, 99, {"total": 1.5}, {}, 0)
        >>> print(report.table().splitlines()[1])
        fc2   neurons  8     6      0.01    -        1.0      0.1    completed
        """
        cells = [_COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
        left = (0, 1, len(_COLUMNS) - 1)
        lines = [
            "  ".join(
                text.ljust(width) if i in left else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([*lines, "", *self._totals()])

    def plot(self, ax: Any = None) -> Any:
        """Draw the relative error of every site, on `ax` or on a new matplotlib axis, which is returned.

        Raises
        ------
        UnavailableError
            If matplotlib is not installed.

        Examples
        --------
        >>> report = PruneReport((), (), "osscar", "parallel", "student", "mask", 9, 9, {}, {}, 0)
        >>> axis = report.plot()  # doctest: +SKIP
        """
        axis = new_axis() if ax is None else ax
        for kind in dict.fromkeys(row.kind for row in self.rows):
            points = [(i, row.relative) for i, row in enumerate(self.rows) if row.kind == kind]
            shown = [point for point in points if point[1] is not None]
            if shown:
                axis.plot(*zip(*shown, strict=True), marker="o", linestyle="", label=kind)
        axis.set_xlabel("site")
        axis.set_ylabel("relative error")
        axis.set_title(f"{self.method}, {self.order}")
        if self.rows:
            axis.legend()
        return axis

    def _totals(self) -> list[str]:
        gone = 1.0 - self.parameters_after / max(self.parameters_before, 1)
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items() if name != "total")
        lines = [
            f"parameters: {self.parameters_before:,} -> {self.parameters_after:,} ({gone:.1%} less)",
            f"time: {self.seconds.get('total', 0.0):.1f} s{f' ({parts})' if parts else ''}",
            f"peak memory: {self.peak_memory / 2**30:.2f} GiB",
        ]
        if self.check:
            lines.append(
                f"shrunk against masked outputs: differ by {self.check['difference']:.2g} at most "
                f"(allowed {self.check['allowed']:.2g}, {self.check['dtype']})"
            )
        if self.left_alone:
            lines.append(f"left alone, all units stay: {', '.join(self.left_alone)}")
        return lines

    def __repr__(self) -> str:
        kept, units = sum(row.kept for row in self.rows), sum(row.n for row in self.rows)
        return (
            f"PruneReport({self.method}, {self.order}, {len(self.rows)} sites, units {units} -> {kept}, "
            f"parameters {self.parameters_before} -> {self.parameters_after}, "
            f"{self.seconds.get('total', 0.0):.1f} s)"
        )


def _cells(row: SiteRow) -> tuple[str, ...]:
    numbers = (row.relative, row.gap)
    shown = tuple("-" if value is None or not math.isfinite(value) else f"{value:.3g}" for value in numbers)
    times = (f"{row.collecting:.1f}", f"{row.solving:.1f}")
    ended = f"{row.termination} (resumed)" if row.resumed else row.termination
    return (row.site, row.kind, str(row.n), str(row.kept), *shown, *times, ended)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
