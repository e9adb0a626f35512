"""The report as tables: every run, and every method in all, as CSV or Parquet."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osscar_opt.bench.report.findings import pair_name
from osscar_opt.errors import UnavailableError

if TYPE_CHECKING:
    from osscar_opt.bench.report.evaluation import Evaluation

__all__ = ["method_rows", "run_rows", "write_csv", "write_parquet"]

_RUN: dict[str, type] = {
    "instance": str,
    "family": str,
    "hash": str,
    "n": int,
    "p": int,
    "q": int,
    "keep": int,
    "label": str,
    "method": str,
    "options": str,
    "seed": int,
    "time_limit": float,
    "memory_limit": int,
    "outcome": str,
    "reason": str,
    "objective": float,
    "relative": float,
    "best_known": float,
    "best_bound": float,
    "best_proved": bool,
    "gap": float,
    "primal_integral": float,
    "seconds_to_best_known": float,
    "bound": float,
    "bound_kind": str,
    "status": str,
    "termination": str,
    "wall": float,
    "search": float,
    "setup": float,
    "cpu": float,
    "peak_memory": int,
    "kept": str,
    "started": str,
    "key": str,
    "environment": str,
}
"""Columns of the table of runs, and what is in them."""
_METHOD: dict[str, type] = {
    "label": str,
    "pairs": int,
    "answered": int,
    "refused": int,
    "runs": int,
    "failed": int,
    "proved_pairs": int,
    "found": int,
    "share": float,
    "reached": int,
    "certified": int,
    "mean_gap": float,
    "geometric_gap": float,
    "worst_gap": float,
    "worst_on": str,
    "geometric_time": float,
    "median_time": float,
    "longest_time": float,
    "integral": float,
    "memory": int,
}


def run_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """List a row for every run; what is not known is None.

    Examples
    --------
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> run_rows(evaluate([]))
    []
    """
    rows = []
    for scored in evaluation.scored:
        run, known = scored.run, evaluation.references.get(scored.pair)
        row = {name: getattr(run, name, None) for name in _RUN}
        row |= {
            "family": scored.family,
            "options": json.dumps(run.options, sort_keys=True),
            "gap": _finite(scored.gap),
            "primal_integral": _finite(scored.integral),
            "seconds_to_best_known": _finite(scored.target),
            "best_known": known and known.value,
            "best_bound": known and _finite(known.bound),
            "best_proved": known and known.proved,
            "kept": None if run.support is None else " ".join(map(str, np.flatnonzero(run.support))),
            "environment": json.dumps(run.environment, sort_keys=True),
        }
        rows.append(row)
    return rows


def method_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """List a row for every method: the fields of `MethodSummary`, what is not known being None.

    Examples
    --------
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> method_rows(evaluate([]))
    []
    """
    rows = []
    for summary in evaluation.summaries:
        row = {name: getattr(summary, name, None) for name in _METHOD}
        row["worst_on"] = None if summary.worst_pair is None else pair_name(evaluation, summary.worst_pair)
        rows.append(
            {name: _finite(value) if isinstance(value, float) else value for name, value in row.items()}
        )
    return rows


def write_csv(evaluation: Evaluation, path: str | os.PathLike[str]) -> list[Path]:
    """Write the runs to a CSV file, and the methods to another beside it, ``NAME-methods.csv``.

    Returns
    -------
    list of Path
        The two files.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> [file.name for file in write_csv(evaluate([]), Path(tempfile.mkdtemp()) / "runs.csv")]
    ['runs.csv', 'runs-methods.csv']
    """
    from osscar_opt.instances.container import replacing

    written = []
    for target, columns, rows in _both(evaluation, Path(path)):
        with replacing(target) as aside, aside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
        written.append(target)
    return written


def write_parquet(evaluation: Evaluation, path: str | os.PathLike[str]) -> list[Path]:
    """Write the runs to a Parquet file, and the methods to another beside it, ``NAME-methods.parquet``.

    Returns
    -------
    list of Path
        The two files.

    Raises
    ------
    UnavailableError
        If pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> [file.name for file in write_parquet(evaluate([]), Path(tempfile.mkdtemp()) / "runs.parquet")]
    ['runs.parquet', 'runs-methods.parquet']
    """
    from osscar_opt.instances.container import replacing

    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "writing Parquet needs pyarrow, which is not installed; run: pip install 'osscar-opt[parquet]', or write "
            "CSV."
        ) from error
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    written = []
    for target, columns, rows in _both(evaluation, Path(path)):
        schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
        with replacing(target) as aside:
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema), aside, compression="zstd")
        written.append(target)
    return written


def _both(
    evaluation: Evaluation, path: Path
) -> Sequence[tuple[Path, Mapping[str, type], list[dict[str, Any]]]]:
    return (
        (path, _RUN, run_rows(evaluation)),
        (path.with_name(f"{path.stem}-methods{path.suffix}"), _METHOD, method_rows(evaluation)),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
