"""How far proofs of optimality reach: on real layers, against other solvers, and as bounds for large layers.

    python benchmarks/real_layers.py --out DIR
    python benchmarks/exactness.py reach --data DIR --json reach.jsonl
    python benchmarks/exactness.py reach --data DIR --json reach.jsonl --methods highs --sizes 24
    python benchmarks/exactness.py peers --data DIR --json peers.jsonl
    python benchmarks/exactness.py large --data DIR --json large.jsonl

`reach` solves every small problem of `real_layers.reach_instances` and says which were proved, and what gap was left;
`peers` times the proof of optimality of several methods on problems that all of them can load;
`large` sets the lower bound of whole layers against the best solution that the heuristics find.

A method is written name[:option=value,...]; `cvxpy:SCIP` is short for `cvxpy:solver=SCIP`. Everything runs on one
thread. One inverse is one Cholesky inverse (LAPACK potrf and potri) of the problem's own gram, timed in the same run.
Results are appended to the --json file as they come; what is in it is not run again, so an interrupted run goes on. Use
a new file for a new version. Tables go to standard output as Markdown, progress to standard error.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import (
    SAME,
    Apart,
    Method,
    Record,
    Results,
    available,
    finite,
    geometric_mean,
    inverse_seconds,
    machine,
    markdown,
    median,
    number,
    percent,
    run,
    say,
    solve,
    task_of,
)
from real_layers import FAMILIES, RATIOS, SIZES, Case, reach_instances

import osscar_opt
from osscar_opt import Problem
from osscar_opt.instances.cutting import subproblem
from osscar_opt.instances.layerlike import Shape, generated

# What the reach is judged by: description, families, n (None: any), ratios, seconds.
ENCODER, LANGUAGE = ("encoder-first", "encoder-random"), ("llm-random",)
TARGETS = (
    ("encoder neurons, n = 32, in 1 s", ENCODER, 32, RATIOS, 1.0),
    ("encoder neurons, n = 48, in 10 s", ENCODER, 48, RATIOS, 10.0),
    ("encoder neurons, n = 64, keep .75, in 4 s", ENCODER, 64, (0.75,), 4.0),
    ("encoder neurons, n = 64, keep .25 and .5, in 60 s (most)", ENCODER, 64, (0.25, 0.5), 60.0),
    ("12 heads of 32, in 2 s", ("encoder-heads",), None, RATIOS, 2.0),
    ("9 heads of 64, in 5 s", ("llm-heads",), None, RATIOS, 5.0),
    ("32 channels of 9, in 60 s", ("conv",), None, RATIOS, 60.0),
    ("language model, random neurons, n = 96, keep .5 and .75, in 60 s", LANGUAGE, 96, (0.5, 0.75), 60.0),
    ("aim: language model, random neurons, n = 128, in 60 s", LANGUAGE, 128, RATIOS, 60.0),
)


# --------------------------------------------------------------------------------------------------------------- reach


def reach(options: argparse.Namespace) -> None:
    cases = sorted(
        reach_instances(
            options.data,
            families=options.families,
            sizes=options.sizes,
            ratios=options.ratios,
            seed=options.seed,
        ),
        key=lambda case: case.problem.p,  # easy ones first
    )
    if not cases:
        raise SystemExit(
            f"{options.data} holds no layer of these families: run benchmarks/real_layers.py first."
        )
    methods = available(options.methods)
    tasks = [
        (
            task_of(
                "reach",
                case.name,
                case.problem,
                method.label,
                options.seconds,
                family=case.family,
                ratio=case.ratio,
            ),
            lambda case=case, method=method: _reach_one(case, method, options.seconds),
        )
        for method in methods
        for case in cases
    ]
    records = run(tasks, Results(options.json))
    for method in methods:
        own = [record for record in records if record["method"] == method.label]
        print(f"### {method.label}, {options.seconds:.6g} s, one thread\n")
        print(reach_table(own), end="\n\n")
        if targets := target_table(own):
            print(targets, end="\n\n")
        if options.each:
            print(each_table(own), end="\n\n")
    if len(methods) > 1:
        print(contradictions(records))


def _reach_one(case: Case, method: Method, limit: float) -> Record:
    unit = inverse_seconds(case.problem.gram)
    found = solve(case.problem, method, limit)
    seconds = found.get("seconds")
    return found | {"unit": unit, "inverses": None if seconds is None else seconds / unit}


def reach_table(records: Iterable[Record]) -> str:
    cells: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        cells[FAMILIES.index(record["family"]), record["n"], record["ratio"]].append(record)
    rows = []
    for (family, n, ratio), group in sorted(cells.items()):
        ran = [record for record in group if "seconds" in record]
        seconds = [record["seconds"] for record in ran]
        rows.append(
            (
                FAMILIES[family],
                n,
                f"{ratio:.2f}",
                f"{sum(bool(record.get('proved')) for record in group)} of {len(group)}",
                percent(_worst_gap(ran)),
                number(median([r["nodes"] for r in ran if r["nodes"] is not None])),
                number(median(seconds)),
                number(max(seconds, default=None)),
                number(median([r["inverses"] for r in ran])),
            )
        )
    head = "problems|n|keep / n|proved|worst gap|nodes, median|s, median|s, worst|inverses, median"
    return markdown(head.split("|"), rows, "l")


def target_table(records: Sequence[Record]) -> str:
    rows = []
    for text, families, n, ratios, seconds in TARGETS:
        group = [
            r
            for r in records
            if r["family"] in families
            and n in (None, r["n"])
            and r["ratio"] in ratios
            and r["limit"] >= seconds
        ]
        if group:
            held = sum(bool(r.get("proved")) and r["seconds"] <= seconds for r in group)
            worst = max((r["seconds"] for r in group if "seconds" in r), default=None)
            rows.append((text, f"{held} of {len(group)}", number(worst), percent(_worst_gap(group))))
    return markdown(["proved", "held", "s, worst", "worst gap"], rows, "l") if rows else ""


def each_table(records: Iterable[Record]) -> str:
    head = "problem|p|q|keep|status|gap|nodes|s|inverses|objective / that of keeping nothing"
    rows = [
        (
            r["case"],
            r["p"],
            r["q"],
            r["keep"],
            r["status"],
            percent(r.get("gap")),
            number(r.get("nodes")),
            number(r.get("seconds")),
            number(r.get("inverses")),
            number(r.get("relative"), 6),
        )
        for r in records
    ]
    return markdown(head.split("|"), rows, "l")


def contradictions(records: Iterable[Record]) -> str:
    """What cannot be true together: a value said to be optimal, or a lower bound, above what another method found."""
    cases: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "objective" in record:
            cases[record["case"]].append(record)
    lines = []
    for case, found in cases.items():
        best = min(record["objective"] for record in found)
        for record in found:
            floor = record["objective"] if record["proved"] else record["bound"]
            if floor is not None and floor > best * (1 + SAME):
                lines.append(
                    f"- {case}: {record['method']} says at least {floor:.9g}, but {best:.9g} was found"
                )
    twice = sum(sum(record["proved"] for record in found) > 1 for found in cases.values())
    said = f"Problems proved by more than one method: {twice}; contradictions: {len(lines)}."
    return "\n".join([said, *lines])


# --------------------------------------------------------------------------------------------------------------- peers


def leading_outputs(problem: Problem, count: int) -> Problem:
    """The problem with the layer's outputs replaced by their `count` leading principal directions."""
    _, _, right = np.linalg.svd(np.linalg.cholesky(problem.gram).T @ problem.optimum, full_matrices=False)
    return Problem(
        problem.gram,
        dense_weights=problem.optimum @ right[:count].T,
        groups=problem.groups,
        keep=problem.keep,
        name=f"{problem.name}, {count} outputs",
        provenance=problem.provenance | {"leading_outputs": count},
    )


def peer_instances(options: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
    if min(options.sizes) < 8:
        raise SystemExit("generated layers have at least 8 groups: pass --sizes of 8 and more.")
    layers: dict[str, Problem | None] = {"generated": None}
    for name in options.layers:
        layers[name] = osscar_opt.load(options.data / f"{name}.safetensors")
    for (name, layer), n, q in itertools.product(layers.items(), options.sizes, options.outputs):
        if q > n:
            continue
        made = (
            generated(Shape.of(n, q=q)) if layer is None else leading_outputs(subproblem(layer, range(n)), q)
        )
        for ratio in options.ratios:
            keep = round(ratio * n)
            yield f"{name}/n{n}/q{q}/keep{keep}", made.with_limits(keep=keep)


def peers(options: argparse.Namespace) -> None:
    methods = available(options.methods)
    apart = Apart()
    tasks = [
        (
            task_of("peers", name, problem, method.label, options.seconds),
            lambda problem=problem, method=method: apart.solve(problem, method, options.seconds),
        )
        for name, problem in sorted(peer_instances(options), key=lambda item: item[1].p)
        for method in methods
    ]
    try:
        records = run(tasks, Results(options.json))
    finally:
        apart.close()
    print(f"### Time to proven optimum, at most {options.seconds:.6g} s, one thread\n")
    labels = [method.label for method in methods]
    print(peer_table(records, labels), end="\n\n")
    print(size_table(records, labels), end="\n\n")
    print(contradictions(records))


def peer_seconds(record: Record) -> float:
    """A peer behind a modelling layer is charged the solver's own time; our methods, the whole call."""
    return float(record["stats"].get("solver_seconds", record["seconds"]))


def peer_table(records: Iterable[Record], labels: Sequence[str]) -> str:
    """The first label is what the others are compared with.

    Solved: says that its solution is optimal. Wrong: says so of a solution that another method beat.
    """
    cases: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        cases[record["case"]][record["method"]] = record
    best = {
        case: min((r["objective"] for r in found.values() if "objective" in r), default=math.inf)
        for case, found in cases.items()
    }
    rows = []
    for label in labels:
        own = {case: found[label] for case, found in cases.items() if label in found}
        solved = {case: r for case, r in own.items() if r.get("proved")}
        wrong = sum(r["objective"] > best[case] * (1 + SAME) + 1e-12 for case, r in solved.items())
        first = {case: found[labels[0]] for case, found in cases.items() if labels[0] in found}
        ratios = [
            peer_seconds(r) / peer_seconds(first[case])
            for case, r in solved.items()
            if first.get(case, {}).get("proved")
        ]
        rows.append(
            (
                label,
                f"{len(solved)} of {len(own)}",
                sum(r["status"] == "refused" for r in own.values()),
                wrong,
                number(geometric_mean([peer_seconds(r) for r in solved.values()])),
                len(ratios),
                number(geometric_mean(ratios)),
                number(min(ratios, default=None)),
                number(max(ratios, default=None)),
            )
        )
    head = (
        f"method|solved|refused|wrong|s, geometric mean|solved also by {labels[0] if labels else ''}|"
        "ratio of times, geometric mean|least|greatest"
    )
    return markdown(head.split("|"), rows, "l")


def size_table(records: Iterable[Record], labels: Sequence[str]) -> str:
    """How many were solved, and in what time, by number of groups and of outputs."""
    cells: dict[tuple[int, int], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[record["n"], record["q"]][record["method"]].append(record)

    def cell(group: Sequence[Record]) -> str:
        times = [peer_seconds(record) for record in group if record.get("proved")]
        return f"{len(times)} of {len(group)}" + (f", {number(geometric_mean(times))} s" if times else "")

    rows = [(n, q, *(cell(found[label]) for label in labels)) for (n, q), found in sorted(cells.items())]
    return markdown(["n", "q", *labels], rows, "")


# --------------------------------------------------------------------------------------------------------------- large


def large(options: argparse.Namespace) -> None:
    if not hasattr(Problem, "lower_bound"):
        raise SystemExit("this version of osscar_opt has no Problem.lower_bound.")
    layers = {name: osscar_opt.load(options.data / f"{name}.safetensors") for name in options.layers}
    layers |= {f"generated-{p}": generated(Shape.of(p), options.seed) for p in options.generated}
    problems = {
        f"{name}/keep{keep}": layer.with_limits(keep=keep)
        for name, layer in layers.items()
        for keep in (round(ratio * layer.n) for ratio in options.ratios)
    }
    tasks = [
        (
            task_of("large", name, problem, "lower_bound", options.seconds),
            lambda problem=problem: _large_one(problem, options),
        )
        for name, problem in problems.items()
    ]
    records = run(tasks, Results(options.json))
    print(f"### Lower bounds in {options.seconds:.6g} s, one thread\n")
    print(large_table(records))


def _large_one(problem: Problem, options: argparse.Namespace) -> Record:
    unit = inverse_seconds(problem.gram)
    begin = time.perf_counter()
    bound = finite(float(problem.lower_bound(time_limit=options.seconds).value))
    seconds = time.perf_counter() - begin
    found = {
        name: problem.solve(name, time_limit=options.search_seconds, progress=False).objective
        for name in options.methods
    }
    best = min(found, key=lambda name: found[name])
    value = found[best]
    return {
        "status": "feasible",
        "objective": value,
        "by": best,
        "found": found,
        "bound": bound,
        "gap": None if bound is None else (value - bound) / value,
        "relative": value / problem.constant,
        "seconds": seconds,
        "unit": unit,
        "inverses": seconds / unit,
    }


def large_table(records: Iterable[Record]) -> str:
    head = "layer|p|q|keep|best known|by|lower bound|gap|value / bound|s|inverses"
    rows = [
        (
            r["case"],
            r["p"],
            r["q"],
            r["keep"],
            number(r["objective"], 6),
            r["by"],
            number(r["bound"], 6),
            percent(r["gap"]),
            number(r["objective"] / r["bound"] if (r["bound"] or 0.0) > 0.0 else None),
            number(r["seconds"]),
            number(r["inverses"]),
        )
        for r in records
    ]
    return markdown(head.split("|"), rows, "l")


def _worst_gap(records: Iterable[Record]) -> float | None:
    """None where a run has no bound at all."""
    gaps = [record.get("gap") for record in records]
    return max(gaps, default=None) if None not in gaps else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="reach | peers | large")

    def command(work: Callable[[argparse.Namespace], None], seconds: float, methods: str) -> Any:
        sub = commands.add_parser(work.__name__)
        sub.set_defaults(work=work)
        sub.add_argument("--data", type=Path, required=True, help="folder that real_layers.py wrote")
        sub.add_argument("--json", type=Path, help="file of results, appended to and resumed from")
        sub.add_argument("--seconds", type=float, default=seconds, help="time limit of one run")
        sub.add_argument("--methods", "--method", nargs="+", default=methods.split())
        sub.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="groups kept / groups")
        sub.add_argument("--seed", type=int, default=0)
        return sub

    sub = command(reach, 60.0, "exact")
    sub.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    sub.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of neurons")
    sub.add_argument("--each", action="store_true", help="print a row for every problem, too")
    sub = command(peers, 60.0, "exact highs cvxpy:SCIP cvxpy:GUROBI")
    sub.add_argument("--sizes", type=int, nargs="+", default=(8, 12, 16, 24))
    sub.add_argument("--outputs", type=int, nargs="+", default=(1, 2, 4, 16), help="q")
    sub.add_argument("--layers", nargs="*", default=("minilm_ffn2", "smollm2_ffn10"))
    sub = command(large, 20.0, "greedy forward osscar search")
    sub.add_argument(
        "--layers", nargs="*", default=("smollm2_ffn10", "smollm2_ffn28", "minilm_ffn0", "minilm_ffn5")
    )
    sub.add_argument("--generated", type=int, nargs="*", default=(3072,), help="p of generated layers")
    sub.add_argument("--search-seconds", type=float, default=60.0, help="time limit of each heuristic")
    options = parser.parse_args()
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"the machine is busy (load {load:.1f}): times will be too long")
    print(f"{machine()}\n")
    options.work(options)


if __name__ == "__main__":
    main()
