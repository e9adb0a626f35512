"""The catalogue: common instances with names, shipped with the package or stated as recipes.

``data/catalogue.json`` lists them all; the shipped ones lie beside it in ``data/files``. Large ones are recipes: what
`osscar_opt.instances.recipes.build` makes of them is kept in the user's `data_folder`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from osscar_opt.errors import FormatError, InputError

if TYPE_CHECKING:
    from typing import SupportsIndex

    from osscar_opt.formulations.problem import Problem

__all__ = ["Catalogue", "Entry", "catalogue", "data_folder", "find"]

VERSION = 1
"""Of the layout of catalogue.json; another one is refused."""

_SHIPPED = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Entry:
    """An instance of the catalogue.

    Attributes
    ----------
    name : str
        Unique, fit for a file's name.
    kind : {"real", "generated"}
    family : str
        "ffn", "heads", "channels", ..., or the name of the generated family.
    source : str
        One sentence for people: model, layer, data, damping.
    recipe : mapping
        What rebuilds it; see `osscar_opt.instances.recipes.build`.
    hash : str
        `Problem.hash` of the problem in the shipped file; "" for a recipe that nobody has built.
    keeps : tuple of int
        Values of keep of interest; empty if the instance has limits of its own only.
    features : mapping
        n, p, q, group_sizes, condition, ...; see `osscar_opt.instances.features.features`.
    shipped : bool
        Whether a file of it comes with the package.

    Examples
    --------
    >>> entry = Entry("tiny", "generated", "planted", "", {"maker": "family"}, "", (2, 4), {"n": 8}, shipped=False)
    >>> entry.pairs
    (2, 4)
    """

    name: str
    kind: str
    family: str
    source: str
    recipe: Mapping[str, Any] = field(repr=False, hash=False)
    hash: str = field(repr=False)
    keeps: tuple[int, ...]
    features: Mapping[str, Any] = field(repr=False, hash=False)
    shipped: bool

    @property
    def pairs(self) -> tuple[int | None, ...]:
        """Values of keep to solve it for; None where its own limits are all there is.

        Examples
        --------
        >>> Entry("tiny", "generated", "knapsack", "", {}, "", (), {}, shipped=False).pairs
        (None,)
        """
        return self.keeps or (None,)

    @property
    def path(self) -> Path:
        """The shipped file, or where what was built from a recipe is kept.

        Examples
        --------
        >>> Entry("tiny", "generated", "planted", "", {}, "", (), {}, shipped=True).path.name
        'tiny.safetensors'
        """
        folder = _SHIPPED / "files" if self.shipped else data_folder() / "instances"
        return folder / f"{self.name}.safetensors"

    def load(self) -> Problem:
        """Read the problem, and check that it is the one the catalogue speaks of.

        Of a shipped file the hash is compared. What was built from a recipe may differ in its last digits from one
        machine to another, and its hash with it: there the recipe is compared that the file was built from.

        Raises
        ------
        InputError
            For a recipe that is not built yet.
        FormatError
            If the file is damaged, or holds another problem.

        Examples
        --------
        >>> Entry("tiny", "generated", "planted", "", {}, "", (), {}, shipped=False).load()
        Traceback (most recent call last):
        osscar_opt.errors.InputError: the instance 'tiny' is a recipe that is not built here yet: run osscar-opt
        instances build tiny.
        """
        from osscar_opt.instances.format import load

        if not self.shipped and not self.path.exists():
            raise InputError(
                f"the instance {self.name!r} is a recipe that is not built here yet: "
                f"run osscar-opt instances build {self.name}."
            )
        problem = load(self.path)
        if self.shipped and problem.hash != self.hash:
            raise FormatError(
                f"{self.path.name} does not hold the problem of the catalogue (its hash is {problem.hash[:12]}, not "
                f"{self.hash[:12]}): install osscar-opt again."
            )
        if not self.shipped and problem.provenance.get("recipe") != self.recipe:
            raise FormatError(
                f"{self.path} was built from another recipe than the catalogue's: "
                f"delete it and run osscar-opt instances build {self.name}."
            )
        return problem

    def to_json(self) -> dict[str, Any]:
        """Everything, as catalogue.json holds it.

        Examples
        --------
        >>> Entry("tiny", "generated", "planted", "", {}, "", (2,), {}, shipped=False).to_json()["keeps"]
        [2]
        """
        return {
            "name": self.name,
            "kind": self.kind,
            "family": self.family,
            "source": self.source,
            "shipped": self.shipped,
            "keeps": list(self.keeps),
            "hash": self.hash,
            "features": dict(self.features),
            "recipe": dict(self.recipe),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Entry:
        """Read what `to_json` gave.

        Examples
        --------
        >>> entry = Entry("tiny", "generated", "planted", "", {}, "", (2,), {}, shipped=False)
        >>> Entry.from_json(entry.to_json()) == entry
        True
        """
        return cls(**{**content, "keeps": tuple(content["keeps"])})

    def matches(self, pattern: str) -> bool:
        """Whether a pattern names this instance, its kind, its family, or "shipped" or "recipe" as it is.

        Examples
        --------
        >>> entry = Entry("tiny", "generated", "planted", "", {}, "", (2,), {}, shipped=False)
        >>> [pattern for pattern in ("ti*", "real", "planted", "recipe") if entry.matches(pattern)]
        ['ti*', 'planted', 'recipe']
        """
        tags = (self.kind, self.family, "shipped" if self.shipped else "recipe")
        return pattern in tags or fnmatchcase(self.name, pattern)


class Catalogue(tuple[Entry, ...]):
    """The instances in order; prints as a table, and can be indexed by name.

    Examples
    --------
    >>> entry = Entry("tiny", "generated", "planted", "", {}, "", (2,), {}, shipped=False)
    >>> Catalogue([entry])["tiny"] is entry
    True
    """

    __slots__ = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the instances, in the order listed.

        Examples
        --------
        >>> Catalogue([Entry("tiny", "generated", "planted", "", {}, "", (2,), {}, shipped=False)]).names
        ('tiny',)
        """
        return tuple(entry.name for entry in self)

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> Catalogue: ...
    def __getitem__(self, key: str | SupportsIndex | slice) -> Entry | Catalogue:
        if isinstance(key, slice):
            return Catalogue(super().__getitem__(key))
        if not isinstance(key, str):
            return super().__getitem__(key)
        for entry in self:
            if entry.name == key:
                return entry
        raise InputError(self._unknown("there is no instance", key, self.names))

    def select(self, patterns: Iterable[str]) -> Catalogue:
        """Those that any of the patterns names, in the catalogue's order.

        Parameters
        ----------
        patterns : iterable of str
            Names with ``*``, ``?`` and ``[...]``, families, "real", "generated", "shipped" or "recipe".

        Returns
        -------
        Catalogue

        Raises
        ------
        InputError
            If a pattern names nothing.

        Examples
        --------
        >>> tiny = Entry("tiny", "generated", "planted", "", {}, "", (2,), {}, shipped=False)
        >>> Catalogue([tiny]).select(["plantd"])
        Traceback (most recent call last):
        osscar_opt.errors.InputError: no instance of the catalogue fits 'plantd'; did you mean 'planted'?
        """
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in wanted:
            if not any(entry.matches(pattern) for entry in self):
                words = {word for entry in self for word in (entry.kind, entry.family)} | set(self.names)
                raise InputError(
                    self._unknown("no instance of the catalogue fits", pattern, ("shipped", "recipe", *words))
                )
        return Catalogue(entry for entry in self if any(entry.matches(pattern) for pattern in wanted))

    @staticmethod
    def _unknown(said: str, key: str, names: Iterable[str]) -> str:
        close = difflib.get_close_matches(key, sorted(names), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "osscar-opt instances list shows them all."
        return f"{said} {key!r}; {hint}"

    def __repr__(self) -> str:
        head = ("name", "kind", "family", "n", "p", "q", "keeps", "file")
        rows = [
            (
                *(entry.name, entry.kind, entry.family),
                *(str(entry.features.get(size, "")) for size in ("n", "p", "q")),
                ", ".join(map(str, entry.keeps)) or "-",
                "shipped" if entry.shipped else "recipe",
            )
            for entry in self
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        ]
        return "\n".join(lines)


def catalogue() -> Catalogue:
    """All instances, read once.

    Returns
    -------
    Catalogue

    Raises
    ------
    FormatError
        If the package's list cannot be read.

    Examples
    --------
    >>> from osscar_opt.instances.listing import catalogue
    >>> len(set(catalogue().names)) == len(catalogue())
    True
    """
    return _read(_SHIPPED / "catalogue.json")


def find(hash: str) -> Entry | None:  # noqa: A002
    """The instance whose problem has this hash, or None.

    Parameters
    ----------
    hash : str
        `Problem.hash`.

    Examples
    --------
    >>> find("") is None
    True
    """
    return next((entry for entry in catalogue() if hash and entry.hash == hash), None)


def data_folder() -> Path:
    """The user's folder for built recipes and for records; it need not exist yet.

    ``$OSSCAR_OPT_DATA`` if it is set, else the platform's: ``~/.local/share/osscar_opt`` on Linux.

    Examples
    --------
    >>> data_folder().is_absolute()
    True
    """
    chosen = os.environ.get("OSSCAR_OPT_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("osscar_opt", appauthor=False).absolute()


@cache
def _read(path: Path) -> Catalogue:
    if not path.exists():
        return Catalogue()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise FormatError(
                f"{path} is a catalogue of version {content['version']}, not {VERSION}: install osscar-opt again."
            )
        return Catalogue(Entry.from_json(entry) for entry in content["instances"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{path} is not a catalogue ({type(error).__name__}: {error}): install osscar-opt again."
        ) from error
