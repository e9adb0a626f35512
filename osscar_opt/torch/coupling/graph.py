"""The coupling to look at: as a graph, as text, as a picture. Blocks that repeat are shown once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from osscar_opt.formulations.solution import new_axis

if TYPE_CHECKING:
    import networkx as nx

    from osscar_opt.torch.coupling.sites import Coupling

__all__ = ["as_graph", "lines", "plot"]

_COLOURS = {"neurons": "#1f77b4", "heads": "#d62728", "channels": "#2ca02c", "": "#9a9a9a"}
_MOST_NAMES = 4


@dataclass(frozen=True)
class _Set:
    """A site or a refusal, as it is shown."""

    name: str
    kind: str
    n: int
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]
    why: str
    times: int = 1

    @property
    def label(self) -> str:
        what = f"{self.n} {self.kind or 'channels'}" if self.n else "?"
        return f"{what} × {self.times}" if self.times > 1 else what


def as_graph(coupling: Coupling) -> nx.DiGraph:
    """The bipartite graph of layers and sets of channels; see `Coupling.graph`."""
    import networkx as nx

    graph = nx.DiGraph()
    for number, shown in enumerate(_sets(coupling)):
        label = f"{shown.label} of {shown.name}" if shown.kind else f"{shown.label} left alone ({number})"
        graph.add_node(label, part="channels", n=shown.n, why=shown.why)
        for layer in (*shown.producers, *shown.consumers):
            graph.add_node(layer, part="layer")
        graph.add_edges_from((layer, label) for layer in shown.producers)
        graph.add_edges_from((label, layer) for layer in shown.consumers)
    return graph


def lines(coupling: Coupling) -> list[str]:
    """The coupling as text.

    Examples
    --------
    >>> from osscar_opt.torch.coupling import Coupling
    >>> lines(Coupling("Model", {}, ()))
    ['Model: 0 sites to prune, 0 sets of channels left alone']
    """
    sites, refused = len(coupling.sites), len(coupling.refused)
    first = f"{coupling.model}: {sites} {'site' if sites == 1 else 'sites'} to prune, "
    text = [f"{first}{refused} {'set' if refused == 1 else 'sets'} of channels left alone"]
    sets = _folded(_sets(coupling))
    shown = [each for each in sets if each.kind]
    names = max((len(each.name) for each in shown), default=0)
    labels = max((len(each.label) for each in shown), default=0)
    text += [
        f"{each.name:{names}}  {each.label:{labels}}  {_some(each.producers)} -> {_some(each.consumers)}".rstrip()
        for each in shown
    ]
    text += [
        f"left alone: {_count(each)}{_some(each.producers)}: {each.why}" for each in sets if not each.kind
    ]
    return text


def plot(coupling: Coupling, ax: Any = None) -> Any:
    """Draw a row a layer, in the order they run, and a column a set of channels: who writes, follows and reads it.

    Parameters
    ----------
    coupling : Coupling
    ax : matplotlib axis, optional

    Returns
    -------
    matplotlib axis

    Raises
    ------
    UnavailableError
        If matplotlib is missing.

    Examples
    --------
    >>> from osscar_opt.torch.coupling import Coupling
    >>> plot(Coupling("Model", {}, ())).get_title(loc="left")
    'Model'
    """
    sets = _folded(_sets(coupling))
    layers = list(dict.fromkeys(name for each in sets for name in _in_order(each)))
    layers = sorted(layers, key=_order(coupling))
    ax = new_axis() if ax is None else ax
    ax.figure.set_size_inches(
        2.6 + 0.1 * max(map(len, layers), default=8) + 0.5 * len(sets), 2 + 0.26 * len(layers)
    )
    rows = {name: -place for place, name in enumerate(layers)}
    for row in rows.values():
        ax.axhline(row, color="#ececec", linewidth=0.8, zorder=0)
    for column, each in enumerate(sets):
        _draw(ax, column, each, rows)
    ax.set_yticks(list(rows.values()), list(rows), fontsize=8)
    ax.set_xticks(range(len(sets)), [each.label for each in sets], rotation=55, ha="left", fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlim(-0.7, max(len(sets), 1) - 0.3)
    ax.set_ylim(min(rows.values(), default=0) - 0.8, 0.8)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(coupling.model, loc="left", fontsize=10, pad=14)
    _legend(ax)
    ax.figure.tight_layout()
    return ax


def _draw(ax: Any, column: int, each: _Set, rows: dict[str, int]) -> None:
    colour = _COLOURS[each.kind]
    touched = [rows[name] for name in _in_order(each)]
    if touched:
        ax.plot([column] * 2, [min(touched), max(touched)], color=colour, linewidth=1.2, alpha=0.6, zorder=1)
    for names, marker in ((each.producers, "s"), (each.followers, "o"), (each.consumers, "v")):
        ys = [rows[name] for name in names]
        ax.scatter([column] * len(ys), ys, marker=marker, s=34, color=colour, zorder=2, edgecolors="white")


def _legend(ax: Any) -> None:
    """Empty marks and lines, drawn for their labels only."""
    marks = [
        ax.scatter([], [], marker=marker, color="#555555", label=label)
        for marker, label in (("s", "writes"), ("o", "follows"), ("v", "reads"))
    ]
    kinds = [
        ax.plot([], [], color=_COLOURS[kind], label=kind or "left alone")[0]
        for kind in ("neurons", "heads", "channels", "")
    ]
    ax.legend(
        handles=[*marks, *kinds],
        ncols=7,
        fontsize=7,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(0.0, -0.01),
        columnspacing=1.0,
        handletextpad=0.3,
    )


def _in_order(each: _Set) -> tuple[str, ...]:
    return (*each.producers, *each.followers, *each.consumers)


def _order(coupling: Coupling) -> Any:
    """Rank of a layer in the model; of a folded one, that of the first it stands for."""
    rank: dict[str, int] = {}
    for place, name in enumerate(coupling.layers):
        rank.setdefault(name, place)
        rank.setdefault(_template(name), place)
    return lambda name: rank.get(name, len(rank))


def _sets(coupling: Coupling) -> list[_Set]:
    shown = []
    for site in coupling.sites.values():
        own = {*site.producers, *site.consumers}
        followers = tuple(name for name in site.modules if name not in own and name)
        shown.append(_Set(site.name, site.kind, site.n, site.producers, followers, tuple(site.consumers), ""))
    for refusal in coupling.refused:
        shown.append(_Set("", "", refusal.channels, refusal.producers, (), refusal.consumers, refusal.why))
    return shown


def _folded(sets: list[_Set]) -> list[_Set]:
    """Sets that repeat block after block as one, if that says it with half as many or fewer."""
    folded: dict[_Set, int] = {}
    for each in sets:
        key = replace(
            each,
            name=_template(each.name),
            producers=_templates(each.producers),
            followers=_templates(each.followers),
            consumers=_templates(each.consumers),
        )
        folded[key] = folded.get(key, 0) + 1
    if 2 * sum(bool(key.kind) for key in folded) > sum(bool(each.kind) for each in sets):
        return sets
    return [replace(key, times=times) for key, times in folded.items()]


def _templates(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_template, names)))


def _template(name: str) -> str:
    """A layer's name with the number of its block, the first number in it, left open."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit() and place < len(parts) - 1:
            return ".".join([*parts[:place], "*", *parts[place + 1 :]])
    return name


def _some(names: Sequence[str]) -> str:
    head = ", ".join(names[:_MOST_NAMES])
    return head if len(names) <= _MOST_NAMES else f"{head} and {len(names) - _MOST_NAMES} more"


def _count(each: _Set) -> str:
    return f"{each.label} of " if each.n else ""
