"""Which sites of a model are pruned, and how many of their units stay: everything a caller may say, checked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations.moments import keep_at_sparsity
from osscar_opt.torch.collect import each_batch

if TYPE_CHECKING:
    import torch

    from osscar_opt.torch.coupling import Coupling, Site

__all__ = ["KINDS", "Width", "choose_sites", "choose_widths", "fitting", "hold_and_trace"]

KINDS = ("neurons", "heads", "channels")
"""What the units of a site can be."""

_SHOWN = 3


@dataclass(frozen=True)
class Width:
    """How many units of a site stay.

    Attributes
    ----------
    site : Site or None
    keep : int or None
        None: no limit.
    block_keep : tuple of int or None
        The same number for each block of units, where the site has blocks; they add up to `keep`.

    Examples
    --------
    >>> Width(site=None, keep=5).pruned
    True
    """

    site: Site
    keep: int | None
    block_keep: tuple[int, ...] | None = None

    @property
    def pruned(self) -> bool:
        """Whether anything goes.

        Examples
        --------
        >>> Width(site=None, keep=None).pruned
        False
        """
        return self.keep is not None

    @property
    def limits(self) -> dict[str, Any]:
        """As arguments of a problem.

        Examples
        --------
        >>> Width(site=None, keep=5).limits
        {'keep': 5}
        """
        if self.keep is None:
            return {}
        if self.block_keep is None:
            return {"keep": self.keep}
        return {"blocks": self.site.blocks, "block_keep": np.array(self.block_keep)}


def hold_and_trace(
    model: torch.nn.Module, batches: Any, coupling: Coupling | None = None
) -> tuple[list[Any], Coupling]:
    """Go through the batches once, and find out on the first what goes together, unless that is known.

    Raises
    ------
    LayerError
        When there are no batches.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> held, coupling = hold_and_trace(model, torch.zeros(4, 5))
    >>> len(held), list(coupling.sites)
    (1, ['2'])
    """
    from osscar_opt.torch.coupling import trace_coupling

    held = list(each_batch(batches))
    if not held:
        raise LayerError("there were no batches to run through the model: give at least one.")
    return held, trace_coupling(model, [held[0]]) if coupling is None else coupling


def choose_sites(coupling: Coupling, sites: str | Sequence[str] | None, given: Any) -> dict[str, Site]:
    """Sites to prune, in execution order.

    Parameters
    ----------
    coupling : Coupling
    sites : str, sequence of str, or None
        As `Coupling.select` takes them; None: those that the keys of `given` name, or else the default ones.
    given : mapping or object
        The sparsities, or the numbers to keep.

    Raises
    ------
    LayerError
        When something names no site, with the closest names; there is no site at all; or two sites are read by one
        layer, whose weights could be refitted for one of them only.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> list(choose_sites(trace_coupling(model, torch.zeros(4, 5)), "*", 0.5))
    ['2']
    """
    wanted = list(given) if sites is None and isinstance(given, Mapping) else sites
    items = [wanted] if isinstance(wanted, str) else wanted
    names = (
        set(coupling.select(None))
        if items is None
        else {n for item in items for n in fitting(coupling, item)}
    )
    if not names:
        raise LayerError(_nothing_to_prune(coupling))
    chosen = {name: site for name, site in coupling.sites.items() if name in names}
    readers: dict[str, str] = {}
    for name, site in chosen.items():
        for consumer in site.consumers:
            if readers.setdefault(consumer, name) != name:
                raise LayerError(
                    f"{consumer} reads what both {readers[consumer]} and {name} would remove: "
                    "prune one of the two, shrink the model, then prune the other."
                )
    return chosen


def fitting(coupling: Coupling, item: Any) -> tuple[str, ...]:
    """Names of the sites that a name, a pattern or a kind stands for.

    A pattern that fits sites with one consumer stands for these only: who writes ``"model.layers.*"`` wants what is
    within the layers, not the residual stream that goes through all of them.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> fitting(trace_coupling(model, torch.zeros(4, 5)), "[0-9]")
    ('2',)
    """
    if not isinstance(item, str):
        raise InputError(f"sites are named by text, not by {type(item).__name__}.")
    found = coupling.select(item)
    if item in coupling.sites:
        return (item,)
    default = coupling.default_sites()
    return tuple(name for name in found if name in default) or found


def _nothing_to_prune(coupling: Coupling) -> str:
    why = "; ".join(refusal.why for refusal in coupling.refused[:_SHOWN])
    return f"the {coupling.model} has no site that one layer alone reads{f' (left alone: {why})' if why else ''}."


def choose_widths(
    coupling: Coupling,
    sites: Mapping[str, Site],
    *,
    sparsity: float | Mapping[str, float] | None = None,
    keep: int | Mapping[str, int] | None = None,
    multiple: int | Mapping[str, int] = 1,
) -> dict[str, Width]:
    """Decide how many units of each site stay.

    With n units, sparsity s and multiple m, ceil((n - floor(s n)) / m) m of them stay, at least m; a site of which all
    would stay is left alone. Where the units of a site lie in blocks, as query heads do in groups that share a key
    head, the same number stays in every block, and it is rounded up as well.

    Parameters
    ----------
    coupling : Coupling
    sites : mapping of str to Site
        Those that `choose_sites` chose.
    sparsity : float, or mapping of str to float, optional
        Share of the units that goes, between 0 and 1. A mapping's keys are names or patterns of sites, or kinds; a
        later key overrides an earlier one, and sites that no key matches are left alone.
    keep : int, or mapping of str to int, optional
        In place of `sparsity`.
    multiple : int, or mapping of str to int, optional
        What the number of units that stay must be a multiple of; a mapping is by kind.

    Returns
    -------
    dict of str to Width
        Of all sites, those left alone with ``keep=None``.

    Raises
    ------
    InputError
        When a number is out of range, or not exactly one of `sparsity` and `keep` is given.
    LayerError
        When a key matches no site.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
    >>> coupling = trace_coupling(model, torch.zeros(4, 5))
    >>> choose_widths(coupling, coupling.sites, sparsity=0.3, multiple=8)["2"].keep
    16
    """
    if (sparsity is None) == (keep is None):
        raise InputError("pass either sparsity, the share of units that goes, or keep, how many stay.")
    given: Any = sparsity if keep is None else keep
    asked = _per_site(coupling, sites, given)
    widths = {}
    for name, site in sites.items():
        if name not in asked:
            widths[name] = Width(site, None)
            continue
        count = keep_at_sparsity(asked[name], site.n) if keep is None else _count(asked[name], name, site.n)
        widths[name] = _rounded(site, count, _multiple_for(multiple, site.kind))
    return widths


def _per_site(coupling: Coupling, sites: Mapping[str, Site], given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(sites, given)
    asked: dict[str, Any] = {}
    for key, value in given.items():
        found = [name for name in fitting(coupling, key) if name in sites]
        if not found:
            raise LayerError(f"{key!r} is none of the sites that are to be pruned: {', '.join(sites)[:200]}.")
        asked.update(dict.fromkeys(found, value))
    return asked


def _count(value: Any, name: str, n: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(
            f"keep = {value!r} for {name} must be a whole number, at least 1 (of its {n} units)."
        )
    return int(value)


def _multiple_for(multiple: int | Mapping[str, int], kind: str) -> int:
    value: Any = multiple
    if isinstance(multiple, Mapping):
        unknown = [key for key in multiple if key not in KINDS]
        if unknown:
            raise InputError(f"multiple has {unknown[0]!r}: its keys are kinds of units, {', '.join(KINDS)}.")
        value = multiple.get(kind, 1)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f"multiple = {value!r} must be a whole number, at least 1.")
    return int(value)


def _rounded(site: Site, count: int, multiple: int) -> Width:
    blocks = 1 if site.blocks is None else int(np.max(site.blocks)) + 1
    step = math.lcm(multiple, blocks)
    kept = max(1, -(-count // step)) * step
    if kept >= site.n:
        return Width(site, None)
    return Width(site, kept, None if site.blocks is None else (kept // blocks,) * blocks)
