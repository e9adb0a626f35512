"""How time and memory grow with the layer: generated layers (see layers.py) up to the largest.

    python benchmarks/scale.py greedy --json greedy.jsonl
    python benchmarks/scale.py greedy --shapes 12288 --precision float32
    python benchmarks/scale.py growth --json growth.jsonl
    python benchmarks/scale.py largest --p 28672 --q 7168 --precision float32 --json largest.jsonl

`greedy` times exact greedy from everything to half of the groups, and its path from everything to a tenth
(`Problem.path`); `growth` does so over sizes, with `osscar`, and draws docs/_static/growth.png; `largest` takes one
layer through every step, its inputs in chunks that never exist together, and says what memory each step needs.

Times are in inverses: one Cholesky inverse (LAPACK potrf and potri, float64) of the same gram in the same run.
*Search* is the method's own time, *total* that of the whole call, with refit and check; medians where a run is short.
*Memory* is what the call adds at most to the memory in use, the problem's own arrays not counted, in arrays of p x p
numbers of the chosen precision: the high-water mark of the resident set, of a process in which nothing else happens
(memory.py). The objective is recomputed by `Problem.value`.

Results are appended to the --json file as they come, and what is in it is not run again. Tables go to standard output
as Markdown, progress to standard error.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from measuring import (
    Method,
    Record,
    Results,
    inverse_seconds,
    machine,
    markdown,
    number,
    repeated,
    run,
    say,
)
from memory import Peak, give_back_freed_memory, peak_memory

import osscar_opt
from osscar_opt import Problem
from osscar_opt.instances.layerlike import Shape, generated, gram_of, posed

PICTURE = Path(__file__).parent.parent / "docs" / "_static" / "growth.png"
COLOURS = ("#1b6ca8", "#c8553d", "#3c8d5a", "#7a5195", "#555555")

MAPPED = 64 << 20
"""Bytes; larger arrays go back to the system when they are freed, so that the resident set tells what is in use. The
memory of layers whose Gram matrix is smaller is measured in a process that is made to do so with all arrays."""


# ------------------------------------------------------------------------------------------------------ greedy, growth


def greedy(options: argparse.Namespace) -> list[Record]:
    shapes = [Shape.parse(text) for text in options.shapes]
    tasks = [
        (_task("scale", shape, " ".join(options.methods), options), lambda shape=shape: apart(shape, options))
        for shape in sorted(shapes, key=lambda shape: shape.p)
    ]
    records = run(tasks, Results(options.json))
    print(scale_table(records))
    return records


def growth(options: argparse.Namespace) -> None:
    records = [record for record in greedy(options) if "found" in record]
    if records:
        draw(records, options.picture)
        say(f"wrote {options.picture}")


def _task(kind: str, shape: Shape, method: str, options: argparse.Namespace) -> Record:
    return {
        "kind": kind,
        "case": shape.name,
        "method": f"{method}, {options.precision}, threads {options.threads}",
        "limit": 0.0,
        "hash": f"seed {options.seed}",
        **vars(shape),
        "p": shape.p,
        "precision": options.precision,
    }


def apart(shape: Shape, options: argparse.Namespace) -> Record:
    """Measure in a process of its own, whose memory holds nothing else; a process that was killed is reported."""
    arguments = (shape, options.methods, options.precision, options.threads, options.seed)
    try:
        record = _in_child(measure, *arguments)
        if shape.p**2 * np.dtype(options.precision).itemsize < MAPPED:
            for label, memory in _in_child(measure_memory, *arguments).items():
                record["found"][label]["memory"] = memory
    except BrokenProcessPool:
        return {"status": "killed, most likely for want of memory"}
    return record


def _in_child(work: Callable[..., Record], *arguments: Any) -> Record:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def rows_said() -> Callable[[int, int], None]:
    """Say every ten seconds how many rows of inputs are summed, and how long the rest will take."""
    begin = time.perf_counter()
    said = [begin]

    def progress(done: int, rows: int) -> None:
        now = time.perf_counter()
        if now - said[0] > 10.0:
            said[0], spent = now, now - begin
            left = spent * (rows - done) / done
            say(f"inputs: {done:,} of {rows:,} rows, {spent:.0f} s, about {left:.0f} s left")

    return progress


def measure(shape: Shape, methods: Sequence[str], precision: str, threads: int, seed: int) -> Record:
    with osscar_opt.threads(threads):
        begin = time.perf_counter()
        layer = generated(shape, seed, progress=rows_said())
        unit = inverse_seconds(layer.gram)
        say(f"{shape.name}: made in {time.perf_counter() - begin:.0f} s, one inverse takes {unit:.3g} s")
        found = {}
        for label in methods:
            warm_up(label, precision)
            found[label] = timed(layer, label, precision)
            say(f"{shape.name}: {label} took {found[label]['seconds'] / unit:.2f} inverses")
        unit = statistics.median([unit, inverse_seconds(layer.gram)])
        return {"status": "done", "unit": unit, "found": found, "seconds": time.perf_counter() - begin}


def measure_memory(shape: Shape, methods: Sequence[str], precision: str, threads: int, seed: int) -> Record:
    give_back_freed_memory()
    with osscar_opt.threads(threads):
        layer, found = generated(shape, seed), {}
        for label in methods:
            warm_up(label, precision)
            with peak_memory() as peak:
                work(layer, label, precision)()
            found[label] = _arrays(peak, layer, precision)
        return found


def warm_up(label: str, precision: str) -> None:
    """Imports and first allocations, before anything is measured."""
    work(generated(Shape.of(64)), label, precision)()


def work(layer: Problem, label: str, precision: str) -> Callable[[], tuple[float, Any] | None]:
    """A method to half of the groups, or "path": greedy's path to a tenth. Returns its search time and support."""
    method = Method.parse("greedy" if label == "path" else label)
    options = method.options | ({} if precision == "float64" else {"precision": precision})

    def path() -> None:
        layer.path("greedy", keep=layer.n // 10, progress=False, **options)

    def solve() -> tuple[float, Any]:
        found = layer.solve(method.name, keep=layer.n // 2, progress=False, **options)
        return found.solve_time, found.support

    return path if label == "path" else solve


def timed(layer: Problem, label: str, precision: str) -> Record:
    with peak_memory() as peak:
        runs = repeated(work(layer, label, precision), times=5, enough=15.0)
    record: Record = {
        "seconds": statistics.median(seconds for seconds, _ in runs),
        "runs": len(runs),
        "memory": _arrays(peak, layer, precision),
    }
    if label == "path":
        return record
    search = statistics.median(searched for _, (searched, _) in runs)
    return record | {"search_seconds": search, "objective": layer.value(runs[-1][1][1])}


def _arrays(peak: Peak, layer: Problem, precision: str) -> Record:
    one = layer.p**2 * np.dtype(precision).itemsize
    return {"arrays": peak.extra / one, "bytes": peak.extra, "exact": peak.exact}


def scale_table(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        if "found" not in record:
            rows.append((record["case"], record["status"], *[""] * 7))
        for label, found in record.get("found", {}).items():
            unit, memory = record["unit"], found["memory"]
            search = found.get("search_seconds")
            rows.append(
                (
                    record["case"],
                    label,
                    record["n"] // (10 if label == "path" else 2),
                    f"{1e3 * unit:,.3g}",
                    "" if search is None else f"{search / unit:.2f}",
                    f"{found['seconds'] / unit:.2f}",
                    f"{'' if memory['exact'] else 'at least '}{memory['arrays']:.2f}",
                    found["runs"],
                    f"{found['objective']:.6g}" if "objective" in found else "",
                )
            )
    head = (
        "layer|method|keep|inverse, ms|search, inverses|total, inverses|memory, p x p arrays|runs|objective"
    )
    return markdown(head.split("|"), rows, "ll")


def draw(records: Sequence[Record], picture: Path) -> None:
    """Inverses against p, a line for each method, each point with its number."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    named = {"path": "greedy, path to a tenth", "greedy": "greedy, to half", "osscar": "osscar, to half"}
    labels = dict.fromkeys(label for record in records for label in record["found"])
    colour = dict(zip(labels, itertools.cycle(COLOURS), strict=False))
    figure, axis = plt.subplots(figsize=(8.0, 4.5), layout="constrained")
    values = {
        (label, record["p"]): record["found"][label]["seconds"] / record["unit"]
        for record in records
        for label in record["found"]
    }
    for label, marker in zip(labels, itertools.cycle("osD^v"), strict=False):
        x, y = zip(*sorted((p, value) for (name, p), value in values.items() if name == label), strict=True)
        axis.plot(x, y, color=colour[label], marker=marker, linewidth=2, label=named.get(label, label))
    top = 1.4 * max(values.values())
    sizes = sorted({p for _, p in values})
    for size in sizes:
        cluster: list[tuple[float, str]] = []  # of points so close that their numbers stand above them all
        for value, label in [
            *sorted((v, label) for (label, p), v in values.items() if p == size),
            (math.inf, ""),
        ]:
            if cluster and value - cluster[-1][0] > 0.12 * top:
                for turn, (shown, name) in enumerate(cluster):
                    height = cluster[-1][0] + (0.03 + 0.05 * turn) * top
                    text = axis.text(size, height, f"{shown:.1f}", color=colour[name], ha="center")
                    text.set_path_effects([withStroke(linewidth=3, foreground="white")])
                cluster = []
            cluster.append((value, label))
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{p:,}" for p in sizes])
    axis.minorticks_off()
    axis.margins(x=0.06)
    axis.set_ylim(0, top)
    axis.set_xlabel("p, inputs of the layer (log scale)")
    axis.set_ylabel("time of the whole call, in Cholesky inverses")
    axis.set_title("Time to prune a layer, in inverses of its own Gram matrix", fontsize=12)
    axis.grid(axis="y", color="#dddddd")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(labels), loc="upper center")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------------------- largest


def largest(options: argparse.Namespace) -> None:
    shape = Shape.of(options.p // options.size, options.size, options.q)
    method = Method.parse(options.method)
    task = _task("largest", shape, f"{options.method} to {options.ratio:g}", options)
    records = run([(task, lambda: largest_one(shape, method, options))], Results(options.json))
    for record in records:
        print(largest_table(record))


def largest_one(shape: Shape, method: Method, options: argparse.Namespace) -> Record:
    """Every step by itself, so that nothing of one is in memory in the next but what it needs."""
    rng = np.random.default_rng(options.seed)
    steps: list[Record] = []

    def step(name: str, work: Callable[[], Any]) -> Any:
        say(f"{name} ...")
        begin = time.perf_counter()
        with peak_memory() as peak:
            result = work()
        seconds = time.perf_counter() - begin
        steps.append({"name": name, "seconds": seconds, **vars(peak)})
        say(f"{name}: {seconds:.1f} s, at most {peak.most / 2**30:.2f} GiB resident")
        return result

    rows = options.rows or 2 * shape.p
    gram = step("inputs, summed in chunks", lambda: gram_of(shape, rng, rows, rows_said()))
    problem = step("problem posed and checked", partial(posed, shape, gram, rng))
    del gram
    unit = step("inverses timed, float64", lambda: inverse_seconds(problem.gram))
    single = None
    if options.precision == "float32":
        single = step("inverses timed, float32", lambda: inverse_seconds(problem.gram, dtype=np.float32))
    keep = round(options.ratio * shape.n)
    chosen = method.options | ({} if options.precision == "float64" else {"precision": options.precision})
    solution = step(
        f"{method.label}, {options.precision}, to {keep} of {shape.n} groups",
        lambda: problem.solve(
            method.name, keep=keep, time_limit=options.time_limit, progress=False, on_event=teller(), **chosen
        ),
    )
    value = solution.objective  # recomputed by the referee, in the time that is measured
    found = {
        "termination": str(solution.termination),
        "search_seconds": solution.solve_time,
        "total_seconds": steps[-1]["seconds"],
        "memory": _arrays(Peak(**{k: steps[-1][k] for k in vars(Peak())}), problem, options.precision),
    }
    del solution
    return {
        "status": "done",
        "keep": keep,
        "rows": rows,
        "unit": unit,
        "unit_float32": single,
        "objective": value,
        "relative": value / problem.constant,
        "seconds": sum(done["seconds"] for done in steps),
        "found": found,
        "steps": steps,
    }


def teller() -> Callable[[Any], None]:
    """Called while a search runs; says every 20 seconds how far it is."""
    begin = said = time.perf_counter()

    def tell(event: Any) -> None:
        nonlocal said
        now, progress = time.perf_counter(), event.progress
        if now - said < 20.0:
            return
        said, spent, fraction = now, now - begin, progress.fraction
        left = f", about {spent * (1.0 - fraction) / fraction:.0f} s left" if fraction else ""
        total = "" if progress.total is None else f" of {progress.total:,.0f}"
        say(f"    {progress.done:,.0f}{total} {progress.unit}, {spent:.0f} s{left}")

    return tell


def largest_table(record: Record) -> str:
    unit, found, gib = record["unit"], record["found"], 2.0**30
    one = record["p"] ** 2 * np.dtype(record["precision"]).itemsize
    rows = []
    for done in record["steps"]:
        mark = "" if done["exact"] else "at least "
        rows.append(
            (
                done["name"],
                number(done["seconds"]),
                f"{done['seconds'] / unit:.2f}",
                f"{done['before'] / gib:.2f}",
                f"{mark}{done['most'] / gib:.2f}",
                f"{mark}{(done['most'] - done['before']) / one:.2f}",
            )
        )
    head = f"step|s|inverses|resident before, GiB|at most, GiB|added, p x p arrays of {record['precision']}"
    most = max(done["most"] for done in record["steps"])
    single = f", in float32 {record['unit_float32']:.3g} s" if record["unit_float32"] else ""
    text = (
        f"**{record['case']}, {record['method']}: p = {record['p']:,}, q = {record['q']:,}, {record['n']:,} groups of "
        f"{record['size']}, {record['rows']:,} inputs.** Search {found['search_seconds'] / unit:.2f} inverses, in all "
        f"{found['total_seconds'] / unit:.2f} (one takes {unit:.3g} s{single}; {found['termination']}). The call adds "
        f"{found['memory']['arrays']:.2f} arrays of p x p; the process needs {most / gib:.2f} GiB at most. Objective "
        f"{record['objective']:.8g}, relative {record['relative']:.4g}."
    )
    return f"{text}\n\n{markdown(head.split('|'), rows, 'l')}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="greedy | growth | largest")

    def command(work: Callable[[argparse.Namespace], Any]) -> Any:
        sub = commands.add_parser(work.__name__)
        sub.set_defaults(work=work)
        sub.add_argument("--json", type=Path, help="file of results, appended to and resumed from")
        sub.add_argument(
            "--precision", choices=("float64", "float32"), default="float64", help="of the search"
        )
        sub.add_argument("--threads", type=int, default=1)
        sub.add_argument("--seed", type=int, default=0)
        return sub

    for work, shapes, methods in (
        (greedy, "768 1536 3072 6144 512x9 32x128", "greedy path"),
        (growth, "768 1536 3072 6144 12288", "greedy osscar path"),
    ):
        sub = command(work)
        sub.add_argument(
            "--shapes", nargs="+", default=shapes.split(), help="p, or groups x rows, as in 512x9"
        )
        sub.add_argument(
            "--methods", nargs="+", default=methods.split(), help='name[:option=value,...] or "path"'
        )
    sub.add_argument("--picture", type=Path, default=PICTURE)
    sub = command(largest)
    sub.add_argument("--p", type=int, default=28672)
    sub.add_argument("--q", type=int, default=7168)
    sub.add_argument("--size", type=int, default=1, help="rows of a group")
    sub.add_argument("--rows", type=int, help="inputs, 2 p by default")
    sub.add_argument("--ratio", type=float, default=0.5, help="groups kept / groups")
    sub.add_argument("--method", default="greedy", help="name[:option=value,...]")
    sub.add_argument("--time-limit", type=float, help="seconds for the solve")
    options = parser.parse_args(arguments)
    print(f"{machine()}, threads: {options.threads}\n")
    with osscar_opt.threads(options.threads):
        options.work(options)


if __name__ == "__main__":
    main()
