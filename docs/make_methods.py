"""Write the table of docs/methods.md from `osscar_opt.bench.rules`; a test compares the two.

python docs/make_methods.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from osscar_opt.bench.rules import OUT_OF_SCOPE, RULES, Rule

PAGE = Path(__file__).with_name("methods.md")
BEGIN, END = "<!-- table: written by docs/make_methods.py -->", "<!-- end of table -->"
SECTIONS = {
    "published": "Published rules",
    "baseline": "Baselines",
    "search": "Methods of this library",
    "exact": "Methods that prove",
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    return "\n".join([before + BEGIN, "", *_tables(text), END + rest.partition(END)[2]])


def _tables(text: str) -> Iterator[str]:
    for kind, title in SECTIONS.items():
        yield f"**{title}**"
        yield ""
        yield "| method | paper | formula | needs | updates, as published | where |"
        yield "|---|---|---|---|---|---|"
        for found in RULES:
            if found.kind == kind:
                yield _row(found, text)
        yield ""
    yield "**Out of scope**"
    yield ""
    for name, why in OUT_OF_SCOPE:
        yield f"- {name}: {why}"
    yield ""


def _row(found: Rule, text: str) -> str:
    own = f"(rule-{found.name.replace('_', '-')})="
    name = (
        f"{{ref}}`{found.name} <{own[1:-2]}>`"
        if own in PAGE.read_text(encoding="utf-8")
        else f"`{found.name}`"
    )
    formula = re.sub(r"([|*_^])", r"\\\1", found.formula)
    where = ".".join(found.where.split(".")[-2:])
    return f"| {name} | {found.paper} | {formula} | {', '.join(found.needs)} | {found.updates} | `{where}` |"


if __name__ == "__main__":
    main()
