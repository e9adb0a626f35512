"""Walks through a model, over all batches: what enters its layers, block by block or by running it as a whole."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from osscar_opt.torch.batches import Batches
from osscar_opt.torch.chain import find_chains
from osscar_opt.torch.collect import as_found
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.recording import Chain, Stop, record
from osscar_opt.torch.stream import HiddenStates, placed
from osscar_opt.torch.watch import LayerCall, watch

__all__ = ["Calibration", "Passes", "Step"]

STUDENT, TEACHER = 0, 1  # streams: the model as it is by now, and the dense one

Seen = Callable[[str, LayerCall], None]


@dataclass
class Passes:
    """How often what was run, and for how long.

    Attributes
    ----------
    full, short : int
        Runs of one block on one batch: to its end, and only until the last of the layers looked for was reached.
    model : int
        Runs of the whole model on one batch, where it has no chain of blocks.
    records : int
        Runs of the model on one batch in which no block computed anything.
    seconds : float
        Of all of them, with whatever was made of what they showed.

    Examples
    --------
    >>> Passes().full
    0
    """

    full: int = 0
    short: int = 0
    model: int = 0
    records: int = 0
    seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds that the inside takes.

        Examples
        --------
        >>> with Passes().timed():
        ...     pass
        """
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


@dataclass
class Step:
    """A place at which a walk stops: a block with the sites in it, or the whole model.

    Attributes
    ----------
    sites : tuple of str
        In execution order; may be empty.
    run : callable
        Takes a stream (0: the model as it is, 1: the dense one) and a batch's number, and runs the block on it.
    keep : callable or None
        Takes stream, batch and what `run` returned, which is what the next block is run on. None: nothing follows.
    whole : bool
        Whether it is the whole model.

    Examples
    --------
    >>> Step(("down",), lambda stream, batch: None, None).sites
    ('down',)
    """

    sites: tuple[str, ...]
    run: Callable[[int, int], Any]
    keep: Callable[[int, int, Any], None] | None
    whole: bool = False


class Calibration:
    """Batches, and the ways to run them through a model.

    Parameters
    ----------
    model : torch.nn.Module
    batches
        As `osscar_opt.torch.collect.each_batch` takes them.  They are gone through once, and held on the CPU.
    consumers : mapping of str to sequences of str
        For each site, in execution order, the layers that read it.
    device : torch.device, optional
        Where blocks are run, one at a time; None: where they are.
    folder : path, optional
        For hidden states that are too large for the memory.

    Attributes
    ----------
    batches : Batches
    chains : list of Chain
    passes : Passes
    tick : callable or None
        Called after every run of a block on a batch.

    Raises
    ------
    LayerError
        When there are no batches.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> calibration = Calibration(model, torch.zeros(4, 5), {"2": ["2"]})
    >>> [step.sites for step in calibration.walk()]
    [(), (), ('2',)]
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batches: Any,
        consumers: Mapping[str, Sequence[str]],
        *,
        device: torch.device | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.batches = Batches(model, batches)
        self.passes = Passes()
        self._consumers = {site: tuple(names) for site, names in consumers.items()}
        self._layers = {name: find_layer(model, name) for names in consumers.values() for name in names}
        self._device = device
        self._folder = folder
        self.tick: Callable[[], object] | None = None
        with as_found(model), torch.no_grad():
            args, kwargs = self.batches.probe()
            self._calls_each = self._counted(args, kwargs)
            self.chains = find_chains(model, args, kwargs, list(self._consumers.values()))

    # ------------------------------------------------------------------------------------------------ passes

    def look_at(
        self,
        step: Step,
        sites: Sequence[str],
        seen: Seen,
        batch: int,
        *,
        stream: int = STUDENT,
        advance: bool = False,
    ) -> None:
        """Run a step on a batch, only as far as needed, and hand over what the sites' layers are called with.

        Parameters
        ----------
        step : Step
        sites : sequence of str
        seen : callable
            Takes the layer's name and its call.
        batch : int
        stream : int, optional
        advance : bool, optional
            Run the step to its end, and go on with what it returns.

        Examples
        --------
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> calibration = Calibration(model, torch.zeros(4, 5), {"2": ["2"]})
        >>> for step in calibration.walk():
        ...     calibration.look_at(step, step.sites, lambda name, call: print(name, call.inputs.shape), 0)
        ...     calibration.advance(step)
        2 torch.Size([4, 8])
        """
        layers = {name: self._layers[name] for site in sites for name in self._consumers[site]}
        advance = advance and step.keep is not None
        left = None if advance else self._expected(layers)

        def told(name: str, call: LayerCall) -> None:
            seen(name, call)
            if left is not None:
                left[name] -= 1
                if not +left:
                    raise Stop

        with self.passes.timed():
            result = None
            with contextlib.suppress(Stop), torch.no_grad(), watch(layers, told):
                result = step.run(stream, batch)
            if advance and step.keep is not None:
                step.keep(stream, batch, result)
        self._count(step, to_its_end=result is not None)

    def advance(self, step: Step, streams: Sequence[int] = (STUDENT,)) -> None:
        """Run a step on every batch, and go on with what it returns; nothing if nothing follows.

        Examples
        --------
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> calibration = Calibration(model, torch.zeros(4, 5), {"2": ["2"]})
        >>> for step in calibration.walk():
        ...     calibration.advance(step)
        >>> calibration.passes.full
        2
        """
        for batch in range(len(self.batches) if step.keep is not None else 0):
            for stream in streams:
                self.look_at(step, (), _nothing, batch, stream=stream, advance=True)

    def _count(self, step: Step, *, to_its_end: bool) -> None:
        if step.whole:
            self.passes.model += 1
        elif to_its_end:
            self.passes.full += 1
        else:
            self.passes.short += 1
        if self.tick is not None:
            self.tick()

    def _expected(self, layers: Mapping[str, torch.nn.Module]) -> Counter[str] | None:
        """How often each layer will be called; None if one was not called when the model was probed."""
        expected = Counter({name: self._calls_each[name] for name in layers})
        return expected if all(expected.values()) else None

    # ------------------------------------------------------------------------------------------------- walks

    def walk(
        self,
        *,
        teacher: bool = False,
        dense: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Generator[Step]:
        """Stop at every block, in order; the caller looks at it, changes it, and advances it.

        Parameters
        ----------
        teacher : bool, optional
            Whether there is a second stream, of the dense model.
        dense : callable, optional
            Makes a context in which the model has its dense weights.

        Yields
        ------
        Step

        Examples
        --------
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> [step.keep is None for step in Calibration(model, torch.zeros(4, 5), {"2": ["2"]}).walk()]
        [False, False, True]
        """
        with as_found(self.model):
            for chain, sites in self._stretches():
                if chain is None:
                    yield self._whole(sites, dense)
                else:
                    yield from self._along(chain, sites, teacher, dense)

    def _stretches(self) -> Iterator[tuple[Chain | None, tuple[str, ...]]]:
        """Chains, each at the place of its first site, and between them the sites that are in none."""
        outside: list[str] = []
        done: set[int] = set()
        for site, names in self._consumers.items():
            number = next((i for i, c in enumerate(self.chains) if c.index_of(names) is not None), None)
            if number is None:
                outside.append(site)
            elif number not in done:
                if outside:
                    yield None, tuple(outside)
                    outside = []
                done.add(number)
                chain = self.chains[number]
                yield chain, tuple(s for s, n in self._consumers.items() if chain.index_of(n) is not None)
        if outside:
            yield None, tuple(outside)

    def _whole(
        self, sites: tuple[str, ...], dense: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> Step:
        def run(stream: int, batch: int) -> Any:
            args, kwargs = self.batches.call(batch)
            with dense() if stream == TEACHER else contextlib.nullcontext():
                return self.model(*args, **kwargs)

        return Step(sites, run, None, whole=True)

    def _along(
        self,
        chain: Chain,
        sites: tuple[str, ...],
        teacher: bool,
        dense: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> Iterator[Step]:
        inside: dict[int, list[str]] = {}
        for site in sites:
            inside.setdefault(chain.index_of(self._consumers[site]) or 0, []).append(site)
        with contextlib.ExitStack() as stack:
            recordings, states = [], []
            for stream in (STUDENT, TEACHER) if teacher else (STUDENT,):
                with dense() if stream == TEACHER else contextlib.nullcontext():
                    recording, hidden = self._recorded(chain)
                recordings.append(recording)
                states.append(HiddenStates(hidden, self._folder, name=f"hidden-{stream}"))
                stack.callback(states[-1].close)

            def run(index: int, stream: int, batch: int) -> Any:
                with dense() if stream == TEACHER else contextlib.nullcontext():
                    return recordings[stream].run(index, batch, states[stream].get(batch), self._device)

            def keep(stream: int, batch: int, result: Any) -> None:
                states[stream].put(batch, result)

            last = len(chain.blocks) - 1
            for index, block in enumerate(recordings[STUDENT].blocks):
                with placed(block, self._device):
                    yield Step(
                        tuple(inside.get(index, ())),
                        functools.partial(run, index),
                        keep if index < last else None,
                    )

    def _recorded(self, chain: Chain) -> Any:
        with self.passes.timed():
            self.passes.records += len(self.batches)
            return record(self.model, chain, [self.batches.call(batch) for batch in range(len(self.batches))])

    def _counted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Counter[str]:
        """How often each layer is called in a pass: nothing can end a pass early that does not know."""
        counts: Counter[str] = Counter()
        with watch(self._layers, lambda name, call: counts.update([name])):
            self.model(*args, **kwargs)
        return counts


def _nothing(name: str, call: LayerCall) -> None:
    """Look at nothing."""
