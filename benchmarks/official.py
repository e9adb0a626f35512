"""Against the official OSSCAR code: the same H, G and keep, one run, one thread; objectives and times.

    git clone https://github.com/mazumder-lab/OSSCAR
    python benchmarks/real_layers.py --out DIR --more
    python benchmarks/official.py race --official OSSCAR --data DIR --json race.jsonl
    python benchmarks/official.py race --official OSSCAR --data DIR --layers smollm2_ffn10 --sparsities 0.5 --each
    python benchmarks/official.py race --official OSSCAR --generated 768 1536 512x9 --sparsities 0.5 --each
    python benchmarks/official.py scaling --official OSSCAR --sizes 768 1536 3072 --json scaling.jsonl
    python benchmarks/official.py scaling --official OSSCAR --sizes 3072 --full-up-to 3072

`race` solves every layer at every sparsity with the official functions and with ours. Every objective is recomputed
from the support by `Problem.value`. Times are in inverses: one Cholesky inverse (LAPACK potrf and potri) of the same
gram in the same run. Ours are those of all of `Problem.solve`, with refit and check. Our time *to the official value*
is the earliest moment at which a trace of ours is at least as good, plus all that a call spends outside its search, of
the cheapest method that gets there.

`scaling` times greedy against the official one-at-a-time pruning. Where that would take long it is an estimate from the
same run: its inversion of H and its last refit are timed by themselves, and each of its removals, which all cost the
same since it updates whole p x p arrays, is taken to cost what the first few do. Sizes run in full show both.

`official_code.py` says what is done so that the published code shows its best.

Results are appended to the --json file as they come, and what is in it is not run again. Tables go to standard output
as Markdown, progress to standard error.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import (
    Method,
    Record,
    Results,
    available,
    geometric_mean,
    inverse_seconds,
    machine,
    markdown,
    number,
    repeated,
    run,
    say,
    task_of,
)
from official_code import Official, Variant, load_official, variants

import osscar_opt
from osscar_opt import Problem
from osscar_opt.instances.layerlike import Shape, generated

OURS = ("greedy", "forward", "osscar", "swap", "search:patience=20")
SAME = 1e-9
"""Relative; objectives closer than this are equal."""


# ----------------------------------------------------------------------------------------------------------------- race


def problems(options: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
    """(name, problem): every layer at every sparsity."""
    makers: dict[str, Callable[[], Problem]] = {}
    for path in sorted(options.data.glob("*.safetensors")) if options.data else ():
        if any(fnmatch.fnmatch(path.stem, pattern) for pattern in options.layers):
            makers[path.stem] = lambda path=path: osscar_opt.load(path)
    for text in options.generated:
        shape = Shape.parse(text)
        makers[shape.name] = lambda shape=shape: generated(shape, options.seed)
    if not makers:
        raise SystemExit(
            "no layer to run on: pass --data, a folder that real_layers.py wrote, or --generated."
        )
    for name, make in makers.items():
        layer = make()
        for sparsity in options.sparsities:
            keep = layer.n - int(sparsity * layer.n)
            if 0 < keep < layer.n:
                yield f"{name}/keep{keep}", layer.with_keep(keep)


def race(options: argparse.Namespace) -> None:
    code = load_official(options.official)
    methods = available(options.methods)
    if code is not None:
        tiny = generated(Shape.of(24))
        Official(code, tiny).run(variants(1)[2], 12)  # torch's first calls are slow
    tasks = [
        (
            task_of(
                "race", name, problem, "ours" if code is None else "ours, official", 0.0, size=_size(problem)
            ),
            lambda problem=problem: race_one(problem, methods, code, options),
        )
        for name, problem in problems(options)
    ]
    records = run(tasks, Results(options.json))
    if options.each:
        for record in records:
            print(each_table(record), end="\n\n")
    print("### Objectives, relative to the best found\n")
    print(value_table(records), end="\n\n")
    print("### Times, in inverses\n")
    print(time_table(records), end="\n\n")
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(_kind(record["size"]), []).append(record)
    for kind, some in kinds.items() if len(kinds) > 1 else ():
        print(f"### Summary: {kind}\n")
        print(summary(some), end="\n\n")
    print("### Summary\n")
    print(summary(records))


def _kind(size: int) -> str:
    return "single rows (neurons)" if size == 1 else f"groups of {size} rows" if size < 32 else "heads"


def _size(problem: Problem) -> int:
    return problem.groups.uniform_size or 0


def race_one(problem: Problem, methods: Sequence[Method], code: Any, options: argparse.Namespace) -> Record:
    keep, gram = problem.keep or 0, problem.gram
    before = inverse_seconds(gram)
    theirs: dict[str, Record] = {}
    if code is not None and _size(problem) > 0:
        peer = Official(code, problem)
        for variant in variants(_size(problem)):
            if variant.stage > 1 or problem.p <= options.one_up_to:
                theirs[variant.name] = run_official(problem, peer, variant, keep)
    targets = {name: found["objective"] for name, found in theirs.items() if "objective" in found}
    ours = {method.label: run_ours(problem, method, targets) for method in methods}
    unit = statistics.median([before, inverse_seconds(gram)])
    best = min(found["objective"] for found in ours.values())
    return {
        "status": "done",
        "objective": best,
        "constant": problem.constant,
        "unit": unit,
        "ours": ours,
        "official": theirs,
        "seconds": sum(found.get("seconds", 0.0) for found in (*ours.values(), *theirs.values())),
    }


def run_official(problem: Problem, peer: Official, variant: Variant, keep: int) -> Record:
    said = {"stage": variant.stage, "local": variant.local}
    try:
        runs = [found for _, found in repeated(lambda: peer.run(variant, keep))]
    except Exception as error:  # anything may come out of other people's code, and is reported
        return said | {"failed": f"{type(error).__name__}: {error}"}
    seconds, support = statistics.median(seconds for seconds, _ in runs), runs[-1][1]
    if support.sum() > keep:
        return said | {"failed": f"kept {int(support.sum())} groups of {keep}"}
    return said | {"objective": problem.value(support), "kept": int(support.sum()), "seconds": seconds}


def run_ours(problem: Problem, method: Method, targets: dict[str, float]) -> Record:
    """Objective and median times; `reaches` has the seconds until each target was met, where it was."""
    runs = repeated(lambda: problem.solve(method.name, progress=False, **method.options))
    objective = problem.value(runs[-1][1].support)
    reaches = {}
    for name, target in targets.items():
        enough = target + SAME * abs(target) + 1e-14 * abs(problem.constant)
        if objective <= enough:
            reaches[name] = statistics.median(_reached(seconds, found, enough) for seconds, found in runs)
    return {
        "objective": objective,
        "seconds": statistics.median(seconds for seconds, _ in runs),
        "search_seconds": statistics.median(found.solve_time for _, found in runs),
        "reaches": reaches,
    }


def _reached(seconds: float, found: Any, enough: float) -> float:
    """Seconds until the value was reached, presolve, refit and check included."""
    times = [entry.time for entry in found.trace if entry.objective <= enough]
    return seconds - found.solve_time + min([*times, found.solve_time])


# --------------------------------------------------------------------------------------------------------------- tables


def _columns(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    theirs = list(dict.fromkeys(name for record in records for name in record["official"]))
    return [v.name for v in variants(1) if v.name in theirs], list(
        dict.fromkeys(name for record in records for name in record["ours"])
    )


def _found(record: Record) -> dict[str, Record]:
    theirs = {f"official, {name}": found for name, found in record["official"].items()}
    return theirs | record["ours"]


def each_table(record: Record) -> str:
    """Everything about one problem, with the exact objectives."""
    rows = []
    for name, found in _found(record).items():
        if "failed" in found:
            rows.append((name, found["failed"], "", ""))
            continue
        total, unit = found["seconds"], record["unit"]
        search = found.get("search_seconds", total)
        rows.append((name, f"{found['objective']:.8g}", f"{search / unit:.2f}", f"{total / unit:.2f}"))
    title = "{case}: p = {p}, q = {q}, n = {n}; one inverse took {unit:.3g} s".format(**record)
    head = ["method", "objective", "search, inverses", "with refit and check, inverses"]
    return f"**{title}**\n\n{markdown(head, rows, 'l')}"


def value_table(records: Sequence[Record]) -> str:
    theirs, ours = _columns(records)
    rows = []
    for record in records:
        found = _found(record)
        best = min(f["objective"] for f in found.values() if "objective" in f)
        floor = 1e-14 * record["constant"]
        cells = [
            _above(found.get(name), best, floor) for name in [*(f"official, {t}" for t in theirs), *ours]
        ]
        rows.append((record["case"], f"{best:.6g}", *cells))
    return markdown(["problem", "best", *(f"official, {name}" for name in theirs), *ours], rows, "l")


def _above(found: Record | None, best: float, floor: float) -> str:
    if found is None or "objective" not in found:
        return "" if found is None else "failed"
    excess = (found["objective"] - best) / max(best, floor)
    return "best" if excess <= SAME else f"+{100 * excess:.2g} %"


def time_table(records: Sequence[Record]) -> str:
    theirs, ours = _columns(records)
    target = "staged + local search"
    rows = []
    for record in records:
        found, unit = _found(record), record["unit"]
        names = [*(f"official, {name}" for name in theirs), *ours]
        cells = [number(found.get(name, {}).get("seconds", 0.0) / unit or None) for name in names]
        reached = reach(record, target) if target in record["official"] else None
        by, seconds = reached or ("", None)
        ratio = None if seconds is None else record["official"][target]["seconds"] / seconds
        to_value = number(None if seconds is None else seconds / unit)
        rows.append((record["case"], f"{1e3 * unit:.3g}", *cells, to_value, by, number(ratio)))
    head = ["problem", "inverse, ms", *(f"official, {name}" for name in theirs), *ours]
    head += ["ours to the value of its local search", "by", "times faster"]
    return markdown(head, rows, "l")


def reach(record: Record, target: str) -> tuple[str, float] | None:
    """The cheapest of our methods that gets to a value of the official code, and its seconds; None if none does."""
    times = {name: f["reaches"][target] for name, f in record["ours"].items() if target in f["reaches"]}
    return min(times.items(), key=lambda item: item[1]) if times else None


def summary(records: Sequence[Record]) -> str:
    """For each official way and each of our methods: on how many problems better, equal, worse; and times."""
    theirs, ours = _columns(records)
    if not theirs:
        return f"{len(records)} problems; the official code was not run."
    rows = []
    for target in theirs:
        ran = [r for r in records if "objective" in r["official"].get(target, {})]
        for name in [*ours, "the cheapest that reaches it"]:
            marks, ratios = [0, 0, 0], []
            for record in ran:
                their, own = record["official"][target], record["ours"].get(name)
                value = (
                    min(f["objective"] for f in record["ours"].values()) if own is None else own["objective"]
                )
                marks[_compare(value, their["objective"], record["constant"])] += 1
                hit = reach(record, target) if own is None else (name, own["reaches"].get(target))
                if hit is not None and hit[1] is not None:
                    ratios.append(their["seconds"] / hit[1])
            low, high = number(min(ratios, default=None)), number(max(ratios, default=None))
            rows.append(
                (
                    f"official, {target}",
                    name,
                    len(ran),
                    *marks,
                    len(ratios),
                    low,
                    number(geometric_mean(ratios)),
                    high,
                )
            )
    head = "against|ours|problems|better|equal|worse|reached|times faster to its value, least|geometric mean|greatest"
    lines = [markdown(head.split("|"), rows, "ll"), ""]
    for record in records:
        for target in theirs:
            value = record["official"].get(target, {}).get("objective")
            if value is not None and _compare(record["objective"], value, record["constant"]) == 2:
                loss = (record["objective"] - value) / value
                lines.append(f"- worse than official, {target}: {record['case']} by {100 * loss:.2g} %")
    failed = [
        f"- official, {name} failed on {record['case']}: {found['failed']}"
        for record in records
        for name, found in record["official"].items()
        if "failed" in found
    ]
    return "\n".join([*lines, *failed])


def _compare(ours: float, theirs: float, constant: float) -> int:
    """0 better, 1 equal, 2 worse."""
    within = SAME * abs(theirs) + 1e-14 * abs(constant)
    return 0 if ours < theirs - within else 1 if ours <= theirs + within else 2


# -------------------------------------------------------------------------------------------------------------- scaling


def scaling(options: argparse.Namespace) -> None:
    code = load_official(options.official)
    if code is not None:
        Official(code, generated(Shape.of(24))).run(Variant("", 1), 12)
    tasks = []
    for text in options.sizes:
        shape = Shape.parse(text)
        full = code is not None and shape.p <= options.full_up_to
        task = {
            "kind": "scaling",
            "case": shape.name,
            "method": f"greedy, one at a time {'in full' if full else 'estimated' if code else 'left out'}",
            "limit": 0.0,
            "hash": f"seed {options.seed}",
            **vars(shape),
            "p": shape.p,
        }
        tasks.append((task, lambda shape=shape, full=full: scaling_one(shape, code, full, options)))
    print(scaling_table(run(tasks, Results(options.json))))


def scaling_one(shape: Shape, code: Any, full: bool, options: argparse.Namespace) -> Record:
    layer = generated(shape, options.seed)
    keep = layer.n - int(options.sparsity * layer.n)
    problem = layer.with_keep(keep)
    before = inverse_seconds(problem.gram)
    ours = run_ours(problem, Method.parse("greedy"), {})
    record: Record = {"status": "done", "keep": keep, "objective": ours["objective"], "ours": ours}
    if code is not None:
        peer = Official(code, problem)
        removals = min(options.removals, problem.n - 2)
        record |= {"estimate": peer.estimate(keep, removals), "removals": removals}
        if full:
            say(f"{shape.name}: about {record['estimate']:.0f} s for the official code, one at a time")
            record["official"] = run_official(problem, peer, Variant("one at a time", 1), keep)
    record["unit"] = statistics.median([before, inverse_seconds(problem.gram)])
    return record


def scaling_table(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        unit, full, guess = record["unit"], record.get("official", {}), record.get("estimate")
        theirs = full.get("seconds", guess)
        own = record["ours"]["seconds"]
        same = ""
        if "objective" in full:
            same = f"{(full['objective'] - record['objective']) / record['objective']:+.1e}"
        rows.append(
            (
                record["case"],
                record["keep"],
                f"{1e3 * unit:.3g}",
                f"{own / unit:.2f}",
                number(full["seconds"] / unit) if full else "not run",
                number(None if guess is None else guess / unit),
                "" if theirs is None else f"{theirs / own:.0f}" + ("" if full else ", estimated"),
                same,
            )
        )
    head = (
        "layer|keep|inverse, ms|greedy, inverses|official, one at a time, inverses|"
        "its estimate from the first removals, inverses|times faster|official objective less ours, relative"
    )
    return markdown(head.split("|"), rows, "l")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="race | scaling")

    def command(work: Callable[[argparse.Namespace], None]) -> Any:
        sub = commands.add_parser(work.__name__)
        sub.set_defaults(work=work)
        sub.add_argument("--official", type=Path, help="checkout of the official OSSCAR repository")
        sub.add_argument("--json", type=Path, help="file of results, appended to and resumed from")
        sub.add_argument("--threads", type=int, default=1, help="for BLAS and torch alike")
        sub.add_argument("--seed", type=int, default=0, help="of generated layers")
        return sub

    sub = command(race)
    sub.add_argument("--data", type=Path, help="folder that real_layers.py wrote")
    sub.add_argument("--layers", nargs="+", default=["*"], help="names of layers in it, or patterns")
    sub.add_argument("--generated", nargs="*", default=[], metavar="SHAPE", help="1536 or 512x9, say")
    sub.add_argument("--sparsities", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    sub.add_argument("--methods", nargs="+", default=OURS, help="name[:option=value,...]")
    sub.add_argument("--one-up-to", type=int, default=1536, help="most p for the official one at a time")
    sub.add_argument("--each", action="store_true", help="print a table for every problem, too")
    sub = command(scaling)
    sub.add_argument("--sizes", nargs="+", default=["768", "1536", "3072"], metavar="SHAPE")
    sub.add_argument("--sparsity", type=float, default=0.5)
    sub.add_argument(
        "--full-up-to", type=int, default=1536, help="most p for running the official code in full"
    )
    sub.add_argument("--removals", type=int, default=50, help="that an estimate is made from")
    options = parser.parse_args(arguments)
    print(f"{machine()}, threads: {options.threads}\n")
    with osscar_opt.threads(options.threads):
        options.work(options)


if __name__ == "__main__":
    main()
