"""Sites: where a model can be pruned, and what goes when a unit goes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from osscar_opt._typing import IntArray
from osscar_opt.errors import LayerError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Coupling", "Kind", "Refusal", "Site", "Slice"]

Kind = Literal["neurons", "heads", "channels"]


@dataclass(frozen=True)
class Slice:
    """An axis of a parameter or buffer along which units lie.

    Attributes
    ----------
    parameter : str
        Its dotted name.
    axis : int
    units : (size of the axis,) array of int
        Unit of each index; -1 for an index that stays whatever goes.

    Examples
    --------
    >>> import numpy as np
    >>> Slice("fused.weight", 0, np.array([0, 1, 0, 1])).axis  # queries and keys of two heads, say
    0
    """

    parameter: str
    axis: int
    units: IntArray = field(repr=False)


@dataclass(frozen=True)
class Refusal:
    """Channels that were found and are left alone.

    Attributes
    ----------
    producers, consumers : tuple of str
        The layers that write them, and those that read them.
    channels : int
        How many there are; 0 for something that could not be watched, where nobody knows.
    why : str

    Examples
    --------
    >>> Refusal(("classifier",), (), 10, "they are outputs of the model").channels
    10
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    why: str


@dataclass(frozen=True)
class Site:
    """Units of which any number may go: removing one removes the same thing everywhere.

    Attributes
    ----------
    name : str
        The layer that reads the units, the first one if there are several.
    kind : {"neurons", "heads", "channels"}
    n : int
        Number of units.
    consumers : dict of str to (inputs of the layer,) array of int
        The layers that read the units, and the unit of each of their inputs; -1 for inputs that are not of this site.
    producers : tuple of str
        The layers that write the units.
    slices : tuple of Slice
        All axes of parameters and buffers that get shorter, the consumers' among them.
    blocks : (n,) array of int, optional
        The group of each unit where equal numbers must stay in all groups (query heads on shared keys and values).

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> trace_coupling(model, torch.zeros(1, 5)).sites["2"]
    Site(name='2', kind='neurons', n=4, producers=('0',))
    """

    name: str
    kind: Kind
    n: int
    consumers: dict[str, IntArray] = field(repr=False)
    producers: tuple[str, ...]
    slices: tuple[Slice, ...] = field(repr=False)
    blocks: IntArray | None = field(default=None, repr=False)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of all modules with parameters or buffers that get shorter, in the order of `slices`.

        Examples
        --------
        >>> import numpy as np
        >>> Site("2", "neurons", 2, {}, (), (Slice("0.weight", 0, np.arange(2)),)).modules
        ('0',)
        """
        return tuple(dict.fromkeys(part.parameter.rpartition(".")[0] for part in self.slices))


@dataclass(frozen=True)
class Coupling:
    """What goes together in a model.

    Attributes
    ----------
    model : str
        Name of the model's class.
    sites : dict of str to Site
        In the order in which the model runs their first consumers.
    refused : tuple of Refusal
        Channels that are left alone, and why.
    layers : tuple of str
        The names of all modules, in the model's own order.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> coupling = trace_coupling(model, torch.zeros(2, 5))
    >>> coupling.sites["2"].n, coupling.sites["2"].producers
    (4, ('0',))
    >>> print(coupling)
    Sequential: 1 site to prune, 1 set of channels left alone
    2  4 neurons  0 -> 2
    left alone: 3 channels of 2: they are outputs of the model
    """

    model: str
    sites: dict[str, Site]
    refused: tuple[Refusal, ...]
    layers: tuple[str, ...] = field(default=(), repr=False)

    def default_sites(self, kinds: Iterable[Kind] = ("neurons", "heads", "channels")) -> tuple[str, ...]:
        """Names of the sites with one consumer and more than one unit, of the given kinds.

        Sites that several layers read, such as the channels of a residual sum, are pruned when they are named.

        Examples
        --------
        >>> Coupling("Model", {}, ()).default_sites()
        ()
        """
        wanted = set(kinds)
        return tuple(
            name
            for name, site in self.sites.items()
            if len(site.consumers) == 1 and site.n > 1 and site.kind in wanted
        )

    def select(self, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
        """Names of sites, from names, shell patterns, and kinds; None for the default ones.

        Parameters
        ----------
        wanted : str or sequence of str, optional
            ``"neurons"``, ``"heads"`` and ``"channels"`` stand for the default sites of that kind, ``"ffn"`` for
            neurons.

        Raises
        ------
        LayerError
            When a name or pattern fits no site; the sentence shows the closest ones.

        Examples
        --------
        >>> site = Site("model.layers.0.mlp.down_proj", "neurons", 8, {"model.layers.0.mlp.down_proj": 0}, (), ())
        >>> coupling = Coupling("Model", {site.name: site}, ())
        >>> coupling.select("*.mlp.*")
        ('model.layers.0.mlp.down_proj',)
        >>> coupling.select("model.layers.0.mlp.downproj")
        Traceback (most recent call last):
        osscar_opt.errors.LayerError: no site of the Model fits 'model.layers.0.mlp.downproj': the closest ...
        """
        if wanted is None:
            return self.default_sites()
        chosen: set[str] = set()
        for item in [wanted] if isinstance(wanted, str) else wanted:
            kind = "neurons" if item == "ffn" else item
            if kind in ("neurons", "heads", "channels"):
                found: Iterable[str] = self.default_sites([kind])  # type: ignore[list-item]
            else:
                found = [name for name in self.sites if name == item or fnmatchcase(name, item)]
            if not found:
                raise LayerError(self._none_of(item))
            chosen.update(found)
        return tuple(name for name in self.sites if name in chosen)

    def _none_of(self, item: str) -> str:
        for refusal in self.refused:
            if item in (*refusal.producers, *refusal.consumers):
                return f"{item} of the {self.model} is left alone: {refusal.why}."
        close = difflib.get_close_matches(item, self.sites, n=3, cutoff=0.4) or list(self.sites)[:3]
        hint = f"the closest names are {', '.join(close)}" if close else "it has no site that could be pruned"
        return f"no site of the {self.model} fits {item!r}: {hint}."

    @property
    def graph(self) -> nx.DiGraph:
        """The coupling as a graph: layers, sets of channels, an edge from who writes to what, from what to who reads.

        Nodes carry ``part`` ("layer" or "channels"); sets of channels also ``n`` and ``why`` ("" if they may be
        pruned).

        Examples
        --------
        >>> import numpy as np
        >>> site = Site("2", "neurons", 4, {"2": np.arange(4)}, ("0",), ())
        >>> sorted(Coupling("Model", {"2": site}, ()).graph.edges)
        [('0', '4 neurons of 2'), ('4 neurons of 2', '2')]
        """
        from osscar_opt.torch.coupling.graph import as_graph

        return as_graph(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw who writes and who reads which channels; see `osscar_opt.torch.coupling.graph.plot`.

        Examples
        --------
        >>> import numpy as np
        >>> site = Site("2", "neurons", 4, {"2": np.arange(4)}, ("0",), ())
        >>> Coupling("Model", {"2": site}, ()).plot().get_title(loc="left")
        'Model'
        """
        from osscar_opt.torch.coupling.graph import plot

        return plot(self, ax)

    def __str__(self) -> str:
        from osscar_opt.torch.coupling.graph import lines

        return "\n".join(lines(self))
