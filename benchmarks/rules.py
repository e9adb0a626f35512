"""Every published rule on whole models, as published and refitted: layer objective, what the model still says, time.

    python benchmarks/rules.py --out rules.jsonl                            # all rows (about two hours)
    python benchmarks/rules.py --out rules.jsonl --table                    # the tables of what is there so far
    python benchmarks/rules.py --out rules.jsonl --only heads/wanda
    python benchmarks/rules.py --out a.jsonl b.jsonl --table                # the tables of several files

SmolLM2-135M-Instruct (4-bit weights dequantised) loses 25 % or 50 % of the FFN neurons of every layer, or one of three
KV groups (3 of 9 query heads); MobileNetV2 loses 30 % of the channels of every expanded layer. All rules see the same
problems: those of the dense model (order "parallel"), on 64 windows of 512 tokens of news, or on the calibration half
of the pictures. What needs gradients, feature maps or filters is computed on the first `--score-windows` windows, or
256 pictures. "Refitted" keeps a rule's choice and gives it the best weights on it. FLAP's bias goes into biases that
the layers do not have by themselves; `osscar, with biases` is fitted with the same ones.

Measured: the mean over layers of the error, relative to keeping nothing; perplexity on held-out news and essays, or
agreement with the dense network on held-out pictures; and processor seconds for scores, choice and weights of all
layers, in units of the processor seconds of one forward pass over the calibration data in the same run. They include
what the library adds, such as recomputing every objective; collecting the moments, which all rules need alike, is not
counted. A rule that reaches `--limit` seconds in a layer hands over what it has, as the last column says. Finished rows
are skipped, whatever their limit. With biases the ridge is relative to central moments, so that the error is not quite
the same function; it is still divided by that of keeping nothing without biases.

What must be installed: see real_models.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Record, Results, done_already, machine, markdown, number, run
from real_models import LENGTH, calibration, compare, held_out, logits
from torch import nn

from osscar_opt import Problem
from osscar_opt.bench.comparison import PUBLISHED, REFITTED
from osscar_opt.bench.rules import RULES, Rule, rule, why_not
from osscar_opt.errors import LayerError
from osscar_opt.torch import collect_problems, scores, shrink, trace_coupling
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.evaluation import perplexity
from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.packaged.networks import NETWORKS, Batches
from osscar_opt.torch.packaged.pictures import calibration_pictures, held_out_pictures

TEXTS = ("news", "essays")
BATCH, PICTURES = 4, 256
OURS = ("greedy", "osscar")
WITH_BIASES = ("flap", "osscar, with biases")


@dataclass(frozen=True)
class Case:
    name: str
    said: str
    model: str
    sites: tuple[str, ...]
    sparsity: float


LANGUAGE, NETWORK = "smollm2", "mobilenet_v2"
CASES = (
    Case("ffn25", "25 % of FFN neurons", LANGUAGE, ("model.layers.*.mlp.down_proj",), 0.25),
    Case("ffn50", "50 % of FFN neurons", LANGUAGE, ("model.layers.*.mlp.down_proj",), 0.5),
    Case("heads", "1 of 3 KV groups", LANGUAGE, ("model.layers.*.self_attn.o_proj",), 1 / 3),
    Case("channels30", "30 % of channels", NETWORK, NETWORKS[NETWORK].inner, 0.3),
)


# ------------------------------------------------------------------------------------------------------------- models


@dataclass
class Subject:
    """A model with its calibration data, and how well it still does."""

    model: nn.Module
    batches: list[Any]
    some: list[Any]
    evaluate: Callable[[], Record]
    coupling: Coupling = field(init=False)
    forward_seconds: float = field(init=False)  # of the processor, for one pass over the calibration data

    def __post_init__(self) -> None:
        self.coupling = trace_coupling(self.model, self.batches[0])
        begin = time.process_time()
        with torch.no_grad():
            for batch in self.batches:
                self.model(**batch) if isinstance(batch, dict) else self.model(batch)
        self.forward_seconds = time.process_time() - begin


@functools.cache
def subject(name: str, windows: int, score_windows: int, eval_windows: int) -> Subject:
    if name == LANGUAGE:
        model, tokenizer, _ = load_language_model(PACKAGED_MODEL)
        texts = held_out(tokenizer, eval_windows)
        batches = calibration(tokenizer, windows, LENGTH, BATCH)

        def evaluate() -> Record:
            return {text: perplexity(model, texts[text], batch_size=BATCH) for text in TEXTS}

        return Subject(model, batches, batches[: score_windows // BATCH], evaluate)
    network = NETWORKS[name]
    model, hold = network.load(), Batches(held_out_pictures(), network)
    dense = logits(model, hold)
    pictures = list(Batches(calibration_pictures(3), network))
    return Subject(model, pictures, pictures[: PICTURES // 32], lambda: compare(dense, logits(model, hold)))


@functools.cache
def problems(case: Case, settings: tuple[int, int, int], biases: bool) -> dict[str, Problem]:
    """The problems of all layers, without a limit yet; those of one model and pattern are collected once."""
    gc.collect()
    about = subject(case.model, *settings)
    with with_biases(about, case) if biases else nullcontext():
        return dict(
            collect_problems(about.model, about.batches, sites=list(case.sites), coupling=about.coupling)
        )


@contextmanager
def with_biases(about: Subject, case: Case) -> Iterator[None]:
    """Biases of zero in the layers that are pruned, for what puts something into them."""
    layers = [find_layer(about.model, name) for name in about.coupling.select(list(case.sites))]
    before = [layer.bias for layer in layers]
    for layer in layers:
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.weight.shape[0]))
    try:
        yield
    finally:
        for layer, bias in zip(layers, before, strict=True):
            layer.bias = bias


@functools.cache
def tables(
    case_model: str, sites: tuple[str, ...], name: str, settings: tuple[int, int, int]
) -> tuple[Any, float]:
    """Scores or filters of a rule for the sites, and the processor seconds that they took."""
    about = subject(case_model, *settings)
    more = {"samples": 8} if name == "chip" else {}
    begin = time.process_time()
    made = scores.MODEL_RULES[name].make(
        about.model, about.some, coupling=about.coupling, sites=list(sites), **more
    )
    return made, time.process_time() - begin


# ------------------------------------------------------------------------------------------------------------- a row


def pruned(case: Case, found: Rule, variant: str, options: argparse.Namespace, biases: bool) -> Record:
    """Choose in every layer, write, shrink, measure, and put everything back."""
    settings = (options.windows, options.score_windows, options.eval_windows)
    about = subject(case.model, *settings)
    whole = problems(_alike(case), settings, False)
    posed = problems(_alike(case), settings, True) if biases else whole
    method_options: dict[str, Any] = {}
    spent = 0.0
    if found.name in scores.MODEL_RULES:
        try:
            made, spent = tables(case.model, case.sites, found.name, settings)
        except LayerError as error:
            return {"status": "refused", "message": str(error)}
        method_options[found.option] = made
    limited = {name: problem.with_keep(keep_of(problem, case)) for name, problem in posed.items()}
    reason = why_not(found, next(iter(limited.values())), frozenset({found.name}))
    if reason:
        return {"status": "refused", "message": reason}
    relative, supports, cut = [], {}, 0
    chosen, choosing = solutions(limited, found.method, method_options, options.limit)
    begin = time.process_time()
    with with_biases(about, case) if biases else nullcontext(), unchanged(about.model, list(posed)):
        for name, problem in limited.items():
            solution = chosen[name]
            cut += str(solution.termination) == "time_limit"
            if variant == REFITTED and not found.refits:
                solution = problem.solve(
                    "scores", scores=np.where(solution.support, 1.0, 0.0), refit=True, progress=False
                )
                if not np.array_equal(solution.support, chosen[name].support):
                    raise RuntimeError(f"{found.name} keeps fewer groups than it may in {name}.")
            relative.append(solution.objective / whole[name].constant)
            solution.apply_to(find_layer(about.model, name))
            supports[name] = solution.support
        spent += choosing
        spent += time.process_time() - begin
        done = shrink(about.model, about.coupling, supports)
        try:
            measured = about.evaluate()
        finally:
            done.undo()
    return {
        "status": "done",
        "objective": float(np.mean(relative)),
        "objectives": relative,
        "cut": cut,
        "layer_seconds": options.limit,
        "seconds": spent,
        "passes": spent / about.forward_seconds,
        **{key: value if math.isfinite(value) else None for key, value in measured.items()},
    }


_LAST: dict[str, Any] = {}


def solutions(
    limited: dict[str, Problem], method: str, method_options: dict[str, Any], limit: float
) -> tuple[dict[str, Any], float]:
    """Solutions of all layers and their processor seconds; those of the last rule are kept for its other variant."""
    key = (method, tuple((p.hash, p.keep) for p in limited.values()), repr(method_options), limit)
    if _LAST.get("key") != key:
        begin = time.process_time()
        found = {
            name: problem.solve(method, time_limit=limit, progress=False, **method_options)
            for name, problem in limited.items()
        }
        _LAST.update(key=key, found=(found, time.process_time() - begin))
    return _LAST["found"]  # type: ignore[no-any-return]


def _alike(case: Case) -> Case:
    """The case that holds the same problems: those of the FFN are the same whatever share goes."""
    return next(other for other in CASES if (other.model, other.sites) == (case.model, case.sites))


def keep_of(problem: Problem, case: Case) -> int:
    from osscar_opt.formulations.moments import keep_at_sparsity

    return keep_at_sparsity(case.sparsity, problem.n)


@contextmanager
def unchanged(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Weights of some layers put back afterwards."""
    layers = [find_layer(model, name) for name in names]
    held = [value for layer in layers for value in (layer.weight, layer.bias) if value is not None]
    before = [value.detach().clone() for value in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, copy in zip(held, before, strict=True):
                value.copy_(copy)


def dense(case: Case, options: argparse.Namespace) -> Record:
    about = subject(case.model, options.windows, options.score_windows, options.eval_windows)
    return {"status": "done", "objective": 0.0, "cut": 0, "seconds": 0.0, "passes": 0.0, **about.evaluate()}


# ------------------------------------------------------------------------------------------------------------- rows


def compared() -> list[tuple[str, Rule, tuple[str, ...]]]:
    """Label, rule and variants of every row."""
    rows: list[tuple[str, Rule, tuple[str, ...]]] = []
    for found in RULES:
        if found.name in ("scores", "magnitude_refit") or (
            found.kind not in ("published", "baseline") and found.name not in OURS
        ):
            continue
        rows.append((found.name, found, (REFITTED,) if found.refits else (PUBLISHED, REFITTED)))
    rows.append((WITH_BIASES[1], rule("osscar"), (REFITTED,)))
    return rows


def tasks(options: argparse.Namespace) -> list[tuple[Record, Callable[[], Record]]]:
    settings = (
        f"{options.windows} windows, {options.score_windows} for scores, {options.eval_windows} held out"
    )
    todo: list[tuple[Record, Callable[[], Record]]] = []
    for case in CASES:
        base: Record = {"kind": "rules", "case": case.name, "limit": None, "hash": settings}
        begun = False
        for label, found, variants in compared():
            if not f"{case.name}/{label}".startswith(tuple(options.only)) or label in options.without:
                continue
            if not begun:
                todo.append((base | {"method": "dense"}, functools.partial(dense, case, options)))
                begun = True
            for variant in variants:
                work = functools.partial(pruned, case, found, variant, options, label in WITH_BIASES)
                todo.append((base | {"method": f"{label}, {variant}"}, work))
    return todo


# ------------------------------------------------------------------------------------------------------------ tables


def measures(case: Case) -> tuple[str, ...]:
    return TEXTS if case.model == LANGUAGE else ("agreement", "kl")


def table(case: Case, records: list[Record]) -> str:
    """One line a rule: as published, then refitted."""
    found = {record["method"]: record for record in records if record["case"] == case.name}
    if not found:
        return ""
    names = measures(case)
    rows: list[Sequence[Any]] = []
    for label, _, _ in compared():
        cells = [found.get(f"{label}, {variant}", {}) for variant in (PUBLISHED, REFITTED)]
        if not any(cells):
            continue
        refused = next((cell["message"] for cell in cells if cell.get("status") == "refused"), "")
        if refused:
            rows.append((label, *[""] * (2 * len(names) + 4), f"not applicable: {refused.partition(':')[0]}"))
            continue
        last = cells[1] or cells[0]
        cut = max(cell.get("cut", 0) for cell in cells if cell)
        rows.append(
            (
                label,
                *(number(cell.get("objective"), 4) if cell else "" for cell in cells),
                *(_said(name, cell) for name in names for cell in cells),
                *(number(cell.get("passes"), 2) if cell else "" for cell in cells),
                f"{cut} layers cut short at {last.get('layer_seconds') or 20:g} s" if cut else "",
            )
        )
    own = found.get("dense", {})
    head = ["rule", "error", "refitted"]
    for name in names:
        head += [name, "refitted"]
    head += ["passes", "refitted", ""]
    dense_row = ("dense", "0", "", *(part for name in names for part in (_said(name, own), "")), "", "", "")
    return f"### {case.said}\n\n" + markdown(head, [dense_row, *rows], "l")


def _said(name: str, cell: Record) -> str:
    if not cell:
        return ""
    value = cell.get(name)
    if name == "agreement":
        return "" if value is None else f"{100 * value:.1f} %"
    return "beyond float" if value is None else number(value, 4) if value < 1e5 else f"{value:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="results, one JSON object a line")
    parser.add_argument("--only", nargs="*", default=[""], help='only rows whose "case/rule" starts so')
    parser.add_argument("--without", nargs="*", default=[], help="rules to leave out")
    parser.add_argument("--windows", type=int, default=64, help="of text to calibrate on (default 64)")
    parser.add_argument("--score-windows", type=int, default=16, help="for gradients and maps (default 16)")
    parser.add_argument("--eval-windows", type=int, default=8, help="of each held-out text (default 8)")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for each layer (default 20)")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--table", action="store_true", help="only the tables of what is done")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [Results(path) for path in options.out]
    todo = tasks(options)
    if not todo:
        raise SystemExit("no row begins with what --only says: give CASE/RULE, such as heads/wanda.")
    if options.table:
        records = [record for found in results for record in done_already(todo, found)]
    else:
        records = run(todo, results[0])
    for case in CASES:
        text = table(case, records)
        if text:
            print(text + "\n")
    print(f"{todo[0][0]['hash']}; {machine()}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
