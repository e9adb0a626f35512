"""Write docs/instances.md from the catalogue and its records; a test compares the two.

python docs/make_instances.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from osscar_opt.instances.ledger import Best, best_known, records_folders
from osscar_opt.instances.listing import Entry, catalogue

PAGE = Path(__file__).with_name("instances.md")

HEAD = """\
# The instances

<!-- Written by docs/make_instances.py from the catalogue and its records; do not edit. -->

What MIPLIB and QPLIB are to integer programming: common instances, best known values, and proofs. {summary}

```console
$ osscar-opt instances list heads
$ osscar-opt instances show {example}
$ osscar-opt instances get {example} --out instances
$ osscar-opt instances verify {example}
$ osscar-opt solve {example} --keep 4 --method exact --output mine.safetensors
$ osscar-opt instances submit mine.safetensors --by "your name"
```

From Python, `osscar_opt.instances.catalogue()` lists them, `catalogue()["{example}"].load()` gives the problem, and
`osscar_opt.instances.best_known()` what is known of every pair.

- **Real** ones are layers, or some groups of layers, of trained networks; `osscar-opt instances build NAME` makes
  them again from the models, which `make models` installs, and compares. **Generated** ones come from the seeded
  families of {{doc}}`api/instances`.
- A **pair** is an instance and a keep: how many groups may stay. Those with a budget or blocks have their own limits.
- **Proved** means that a certificate was accepted by the checker ({{doc}}`certificates`) whose bound meets the value,
  within a relative 1e-6. Of **open** pairs the **gap** is that between the value and a bound certified likewise.
- `osscar-opt instances verify` recomputes every value and checks every certificate that is kept, with `--regenerate`
  also those that are not; `osscar-opt instances prove NAME --time-limit 3600` tries to close an open pair.

Values are objectives as in {{doc}}`concepts`, condition that of the gram with unit diagonal, *rank* its effective rank.
The status names the proof of the bound: an enumeration, the tree of a branch and bound, or a relaxation alone.
"""

FAMILIES = {
    "ffn": "Feed-forward neurons",
    "heads": "Attention heads",
    "channels": "Convolution channels",
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page, from the package's own records alone."""
    entries, known = catalogue(), best_known(records_folders()[:1])
    parts = [HEAD.format(summary=_summary(entries, known), example=_example(entries))]
    for kind, title in (("real", "Real instances"), ("generated", "Generated instances")):
        parts.append(f"## {title}\n")
        families = dict.fromkeys(entry.family for entry in entries if entry.kind == kind)
        for family in families:
            chosen = [entry for entry in entries if (entry.kind, entry.family) == (kind, family)]
            parts.append(f"### {FAMILIES.get(family, family.replace('_', ' ').capitalize())}\n")
            parts.append("\n".join(_table(chosen, known)) + "\n")
    return "\n".join(parts)


def _summary(entries: Iterable[Entry], known: dict[tuple[str, int | None], Best]) -> str:
    shipped = [entry for entry in entries if entry.shipped]
    pairs = [known.get((entry.hash, keep)) for entry in shipped for keep in entry.pairs]
    proved = sum(best is not None and best.proved for best in pairs)
    gaps = [best.gap for best in pairs if best is not None and not best.proved]
    real = sum(entry.kind == "real" for entry in shipped)
    recipes = len(list(entries)) - len(shipped)
    return (
        f"{len(shipped)} instances come with the package, {real} of them real; {recipes} larger ones are recipes that "
        f"build on your machine. Of the {len(pairs)} pairs that are shipped, {proved} ({proved / len(pairs):.0%}) are "
        f"proved optimal; the others have a certified gap of at most {max(gaps, default=0.0):.1%}."
    )


def _example(entries: Iterable[Entry]) -> str:
    return next(entry.name for entry in entries if entry.family == "heads" and entry.shipped)


def _table(entries: Iterable[Entry], known: dict[tuple[str, int | None], Best]) -> Iterator[str]:
    """A row for each instance, with a line for each of its keeps."""
    yield "| instance | n | p | q | condition | rank | keep | best known | gap | status |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    for entry in entries:
        features = entry.features
        sizes = [str(features.get(name, "")) for name in ("n", "p", "q")]
        condition = _number(features.get("condition_equilibrated"), ".3g")
        rank = _number(features.get("effective_rank"), ".0f")
        lines = [_cells(keep, known.get((entry.hash, keep))) for keep in entry.pairs]
        cells = ["<br>".join(column) for column in zip(*lines, strict=True)]
        yield "| " + " | ".join([entry.name, *sizes, condition, rank, *cells]) + " |"


def _cells(keep: int | None, best: Best | None) -> tuple[str, str, str, str]:
    limit = "its own" if keep is None else str(keep)
    if best is None:
        return limit, "-", "-", "not tried"
    value, proof = f"{best.value:.8g}", "" if best.proof is None else f", {best.proof.proof}"
    if best.proved:
        return limit, value, "0", f"proved{proof}".replace(" ", "\N{NO-BREAK SPACE}")
    return (
        limit,
        value,
        f"{best.gap:.2%}" if best.proof else "no bound",
        f"open{proof}".replace(" ", "\N{NO-BREAK SPACE}"),
    )


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


if __name__ == "__main__":
    main()
