"""The packaged models by name, and the pruning problems of their layers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from osscar_opt.errors import InputError
from osscar_opt.torch.collect import visit_layer_inputs
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.moments import LayerMoments

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["MODELS", "Counted", "Packaged", "Progress", "layer_problem", "one_thread", "packaged"]

Progress: TypeAlias = Callable[[int, int], None]
"""What is called with how much is done, and how much there is in all."""

_HOME = "osscar_opt.torch.packaged"

MODELS: dict[str, str] = {
    "minilm": f"{_HOME}.minilm:packaged",
    "smollm2": f"{_HOME}.language:packaged",
    "fashion_cnn": f"{_HOME}.fashion:packaged_cnn",
    "fashion_mlp": f"{_HOME}.fashion:packaged_mlp",
    "mobilenet_v2": f"{_HOME}.networks:packaged_mobilenet",
    "efficientnet_lite0": f"{_HOME}.networks:packaged_efficientnet",
    "crepe": f"{_HOME}.crepe:packaged",
}
"""Import strings of functions that return a `Packaged`, by the model's name."""


@dataclass(frozen=True)
class Packaged:
    """A model, what to calibrate it on, and what an instance's provenance says of both.

    Attributes
    ----------
    model : torch.nn.Module
        In evaluation mode.
    batches
        As `osscar_opt.torch.problem_from_layer` takes them; can be run through more than once.
    made_of : dict
        Packages with their versions, data, amounts.
    heads : int or None
        Attention heads of a layer.

    Examples
    --------
    >>> Packaged(torch.nn.Linear(4, 3), [torch.eye(4)], {"model": "toy"}).heads is None
    True
    """

    model: torch.nn.Module
    batches: Any
    made_of: dict[str, Any]
    heads: int | None = None


@dataclass(frozen=True)
class Counted:
    """Batches that tell how many of them are done whenever the next one is asked for.

    Examples
    --------
    >>> list(Counted("ab", lambda done, total: print(done, "of", total)))
    0 of 2
    1 of 2
    2 of 2
    ['a', 'b']
    """

    batches: Any
    progress: Progress | None

    def __iter__(self) -> Iterator[Any]:
        done = 0
        for batch in self.batches:
            self._tell(done)
            yield batch
            done += 1
        self._tell(done)

    def _tell(self, done: int) -> None:
        if self.progress is not None and isinstance(self.batches, Sized):
            self.progress(done, len(self.batches))


def packaged(name: str, progress: Progress | None = None) -> Packaged:
    """Load a model and its calibration data; the last one asked for is kept.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    progress : callable, optional
        Called with the batches done and the batches in all, in training and in collecting.

    Raises
    ------
    InputError
        For an unknown name.
    UnavailableError
        When a package is missing; it says what to install.

    Examples
    --------
    >>> packaged("gpt")
    Traceback (most recent call last):
    osscar_opt.errors.InputError: there is no packaged model 'gpt'; the models are minilm, smollm2, fashion_cnn,
    fashion_mlp, mobilenet_v2, efficientnet_lite0, crepe.
    """
    if name not in MODELS:
        raise InputError(f"there is no packaged model {name!r}; the models are {', '.join(MODELS)}.")
    if name not in _LOADED:
        module, _, function = MODELS[name].partition(":")
        made: Packaged = getattr(importlib.import_module(module), function)(progress)
        _LOADED.clear()
        _LOADED[name] = made
    return _LOADED[name]


def layer_problem(
    model: str,
    layer: str,
    *,
    groups: str = "neurons",
    damping: float = 1e-2,
    intercept: bool = False,
    progress: Progress | None = None,
) -> Problem:
    """Pose the problem of a whole layer of a packaged model, without a limit.

    It is collected with one thread, so that the same machine gives the same numbers, bit for bit. The sums of the last
    layer asked for are kept: another damping of it costs little.

    Parameters
    ----------
    model : str
        A key of `MODELS`.
    layer : str
        Dotted name.
    groups : {"neurons", "channels", "heads"}, optional
    damping : float, optional
    intercept : bool, optional
        Moments about the means.
    progress : callable, optional
        Called with the batches done and the batches in all, in training and in collecting.

    Returns
    -------
    Problem

    Examples
    --------
    >>> layer_problem("minilm", "encoder.layer.0.output.dense").n  # doctest: +SKIP
    1536
    """
    with one_thread():
        found = packaged(model, progress)
        moments = _moments(model, layer, intercept, progress)
    return moments.problem(
        groups=groups,
        num_heads=found.heads if groups == "heads" else None,
        damping=damping,
        name=f"{model} {layer}",
        provenance=found.made_of,
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread inside: sums are then always added up in the same order.

    Examples
    --------
    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_LOADED: dict[str, Packaged] = {}
_COLLECTED: dict[tuple[str, str, bool], LayerMoments] = {}


def _moments(model: str, name: str, intercept: bool, progress: Progress | None) -> LayerMoments:
    found = packaged(model, progress)
    key = (model, name, intercept)
    if key not in _COLLECTED:
        layer = find_layer(found.model, name)
        moments = LayerMoments(layer, name, intercept=intercept)
        batches = Counted(found.batches, progress)
        visit_layer_inputs(found.model, layer, name, batches, lambda call, mask: moments.add(call, mask=mask))
        _COLLECTED.clear()
        _COLLECTED[key] = moments
    return _COLLECTED[key]
