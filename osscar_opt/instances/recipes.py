"""Recipes: what an instance of the catalogue is made of, built again.

A recipe is JSON. Its ``maker`` says the rest:

- ``"family"``: ``family``, ``seed`` and ``options`` of `osscar_opt.instances.random_instance`
- ``"layer"``: ``model`` and ``layer`` of `osscar_opt.torch.packaged.models.layer_problem`, with ``groups``,
  ``damping``, ``intercept``; ``select`` says which groups of the layer: ``{"first": n}``, ``{"random": n, "seed": s}``,
  or None for all
- ``"layerlike"``: ``groups``, ``size``, ``outputs`` and ``seed`` of `osscar_opt.instances.layerlike.generated`

``dtype`` is the file's precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations.problem import Problem
from osscar_opt.instances.cutting import random_groups, rotated, rounded, subproblem
from osscar_opt.instances.features import features
from osscar_opt.instances.listing import Entry

__all__ = ["Comparison", "build", "compare", "keep_built", "made_from"]

Progress = Callable[[int, int], None]

ROUNDING = {"float32": 1e-4, "float64": 1e-8}
"""Deviation up to which a rebuilt problem is the same: float32 stands for networks run in float32."""


def build(entry: Entry, progress: Progress | None = None) -> Problem:
    """Make an instance again, from its model and data or from its seed.

    Parameters
    ----------
    entry : Entry
    progress : callable, optional
        Called with how much is done and how much there is, once or more in turn.

    Returns
    -------
    Problem
        Without keep; as it is read back from a file of the recipe's precision.

    Raises
    ------
    UnavailableError
        When a package is missing that carries the model or the data; it says what to install.
    InputError
        For a recipe of another version of this library.

    Examples
    --------
    >>> recipe = {"maker": "family", "family": "planted", "seed": 3, "options": {"n": 8}, "dtype": "float64"}
    >>> entry = Entry("tiny", "generated", "planted", "", recipe, "", (4,), {}, shipped=False)
    >>> build(entry)
    Problem('tiny', p=8, q=3, groups=Groups(n=8, sizes=1))
    """
    problem = made_from(entry.recipe, progress)
    provenance = problem.provenance | {"source_in_words": entry.source, "recipe": dict(entry.recipe)}
    return _named(problem, entry.name, provenance)


def made_from(recipe: Mapping[str, Any], progress: Progress | None = None) -> Problem:
    """Make what a recipe says, without a name and without keep.

    Examples
    --------
    >>> made_from({"maker": "family", "family": "blocks", "seed": 1, "options": {"n": 8}}).block_keep
    array([2, 2])
    """
    maker = recipe.get("maker")
    if maker not in _MAKERS:
        raise InputError(
            f"there is no maker of instances {maker!r}: the recipe belongs to another version of osscar-opt."
        )
    return rounded(_MAKERS[maker](recipe, progress), recipe.get("dtype", "float64"))


def keep_built(entry: Entry, problem: Problem) -> None:
    """Write what was built from a recipe to the user's folder, where `Entry.load` looks for it.

    Raises
    ------
    InputError
        For a shipped instance: its file is the package's.

    Examples
    --------
    >>> entry = Entry("tiny", "generated", "planted", "", {}, "", (4,), {}, shipped=True)
    >>> keep_built(entry, Problem(np.eye(2), [[1.0], [2.0]]))
    Traceback (most recent call last):
    osscar_opt.errors.InputError: the instance 'tiny' is shipped with the package: there is nothing to keep.
    """
    from osscar_opt.instances.format import save

    if entry.shipped:
        raise InputError(
            f"the instance {entry.name!r} is shipped with the package: there is nothing to keep."
        )
    entry.path.parent.mkdir(parents=True, exist_ok=True)
    save(problem, entry.path, dtype=entry.recipe.get("dtype", "float64"), keeps=entry.keeps)


# ----------------------------------------------------------------------------------------------------------- makers


def _from_family(recipe: Mapping[str, Any], _: Progress | None) -> Problem:
    from osscar_opt.instances.generators import random_instance

    drawn = random_instance(recipe["seed"], recipe["family"], **recipe["options"])
    return drawn.with_limits(keep=None)  # the entry's keeps are what it is solved for


def _from_layer(recipe: Mapping[str, Any], progress: Progress | None) -> Problem:
    from osscar_opt.torch.packaged.models import layer_problem

    whole = layer_problem(
        recipe["model"],
        recipe["layer"],
        groups=recipe["groups"],
        damping=recipe["damping"],
        intercept=recipe["intercept"],
        progress=progress,
    )
    chosen = _selected(recipe["select"], whole.n)
    return rotated(whole if chosen is None else subproblem(whole, chosen))


def _from_likeness(recipe: Mapping[str, Any], progress: Progress | None) -> Problem:
    from osscar_opt.instances.layerlike import Shape, generated

    shape = Shape.of(recipe["groups"], recipe["size"], recipe["outputs"])
    return generated(shape, recipe["seed"], progress=progress)


def _selected(select: Mapping[str, Any] | None, n: int) -> list[int] | None:
    if select is None:
        return None
    if "first" in select:
        return list(range(select["first"]))
    return random_groups(n, select["random"], select["seed"])


_MAKERS: dict[Any, Callable[[Mapping[str, Any], Progress | None], Problem]] = {
    "family": _from_family,
    "layer": _from_layer,
    "layerlike": _from_likeness,
}


def _named(problem: Problem, name: str, provenance: Mapping[str, Any]) -> Problem:
    """The same problem under another name; nothing in it is checked again."""
    state = {**problem._state(), "name": name, "_provenance": json.dumps(provenance)}
    return Problem._trusted(**state)


# ------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Comparison:
    """How a rebuilt instance compares with the catalogue's.

    Attributes
    ----------
    outcome : {"identical", "equal_to_rounding", "different"}
    deviation : float
        The larger of two: of gram, scaled to unit diagonal; and of G G', what choosing sees of the targets, scaled
        likewise, relative to its largest entry. For a recipe that is no file, of mean diagonal and loss. Infinite where
        sizes or limits differ, or there is nothing to compare with.
    sentence : str

    Examples
    --------
    >>> Comparison("identical", 0.0, "bit for bit the same.").outcome
    'identical'
    """

    outcome: Literal["identical", "equal_to_rounding", "different"]
    deviation: float
    sentence: str


def compare(entry: Entry, rebuilt: Problem) -> Comparison:
    """Compare a rebuilt problem with the catalogue's, by hash and else by numbers.

    Parameters
    ----------
    entry : Entry
    rebuilt : Problem
        As `build` returned it.

    Returns
    -------
    Comparison

    Examples
    --------
    >>> recipe = {"maker": "family", "family": "planted", "seed": 3, "options": {"n": 8}}
    >>> problem = made_from(recipe)
    >>> compare(Entry("tiny", "generated", "planted", "", recipe, problem.hash, (), {}, shipped=False), problem).outcome
    'identical'
    """
    if rebuilt.hash == entry.hash:
        return Comparison("identical", 0.0, "identical, bit for bit.")
    if not entry.hash:
        return Comparison(
            "different", math.inf, "nobody has built it before: there is nothing to compare it with."
        )
    if entry.shipped:
        deviation = _deviation(entry.load(), rebuilt)
    else:
        deviation = _difference_of_features(entry.features, features(rebuilt))
    if deviation <= ROUNDING[entry.recipe.get("dtype", "float64")]:
        return Comparison(
            "equal_to_rounding", deviation, f"equal up to rounding: the largest deviation is {deviation:.1e}."
        )
    if math.isinf(deviation):
        return Comparison("different", deviation, "different: sizes, groups or limits are others.")
    trained = str(entry.recipe.get("model", "")).startswith("fashion")
    why = " Its network is trained here, and training ends elsewhere on other processors." if trained else ""
    return Comparison("different", deviation, f"different: the largest deviation is {deviation:.1e}.{why}")


def _deviation(known: Problem, other: Problem) -> float:
    same = known.p == other.p and known.n == other.n and _limits(known) == _limits(other)
    if not same or not np.array_equal(known.groups.group_of_row, other.groups.group_of_row):
        return math.inf
    diagonal = known.gram.diagonal()
    scale = np.where(diagonal > 0, diagonal, 1.0) ** -0.5
    gram = float(np.max(np.abs(known.gram - other.gram) * scale[:, None] * scale))
    first, second = known.cross * scale[:, None], other.cross * scale[:, None]
    return max(gram, _difference_of_products(first, second))


def _difference_of_products(first: FloatArray, second: FloatArray, stripe: int = 512) -> float:
    """Largest entry of A A' - B B' as part of the largest of A A'; some rows at a time."""
    difference = largest = 0.0
    for start in range(0, len(first), stripe):
        rows = slice(start, start + stripe)
        product = first[rows] @ first.T
        largest = max(largest, float(np.max(np.abs(product))))
        difference = max(difference, float(np.max(np.abs(product - second[rows] @ second.T))))
    return difference / largest if largest > 0 else difference


def _difference_of_features(known: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    if any(known.get(name) != other[name] for name in ("n", "p", "q", "group_sizes", "limits")):
        return math.inf
    names = ("mean_diagonal", "loss_of_all")
    pairs = [(float(known[name]), float(other[name])) for name in names]
    return max(abs(first - second) / max(abs(first), 1e-300) for first, second in pairs)


def _limits(problem: Problem) -> list[Any]:
    names = ("costs", "budget", "always_keep", "always_remove", "blocks", "block_keep")
    values = (getattr(problem, name) for name in names)
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
