"""Calibration batches, held on the CPU and moved to where the model is."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from osscar_opt.errors import LayerError
from osscar_opt.torch.collect import arguments_of, as_found, attention_mask_of, each_batch, tensors_in
from osscar_opt.torch.recording import home_of, without_cache

__all__ = ["Batches", "Call"]

_PROBE_ROWS = 2
_PROBE_TOKENS = 48

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of the model's forward pass."""


class Batches:
    """Batches of a model.

    Parameters
    ----------
    model : torch.nn.Module
    batches
        As `osscar_opt.torch.collect.each_batch` takes them.  They are gone through once.

    Attributes
    ----------
    masks : list of torch.Tensor or None
        The attention mask of each batch.

    Raises
    ------
    LayerError
        When there are no batches.

    Examples
    --------
    >>> len(Batches(torch.nn.Linear(5, 3), [torch.zeros(4, 5), torch.zeros(2, 5)]))
    2
    """

    def __init__(self, model: torch.nn.Module, batches: Any) -> None:
        signature = inspect.signature(model.forward)
        cpu = torch.device("cpu")
        self._model = model
        self._calls = [arguments_of(batch, signature, cpu) for batch in each_batch(batches)]
        if not self._calls:
            raise LayerError("there were no batches to run through the model: give at least one.")
        self.masks = [attention_mask_of(args, kwargs, signature) for args, kwargs in self._calls]

    def __len__(self) -> int:
        return len(self._calls)

    def call(self, number: int) -> Call:
        """Arguments of the forward pass for a batch, where the model is, without a cache.

        Examples
        --------
        >>> Batches(torch.nn.Linear(5, 3), torch.zeros(4, 5)).call(0)[0][0].shape
        torch.Size([4, 5])
        """
        return self._placed(self._calls[number])

    def probe(self, rows: int = _PROBE_ROWS, tokens: int = _PROBE_TOKENS) -> Call:
        """A small batch, to see how the model runs: the first rows of the first one, and of texts the first tokens.

        Examples
        --------
        >>> Batches(torch.nn.Linear(5, 3), torch.zeros(4, 5)).probe()[0][0].shape
        torch.Size([2, 5])
        """
        return self._placed(_first_rows(self._calls[0], rows, tokens))

    def first_output(self, *, double: bool = False) -> torch.Tensor:
        """What the model returns for the small batch: its first floating-point tensor, on the CPU.

        Parameters
        ----------
        double : bool, optional
            Compute in float64, whatever the model's dtype; it is left as it is.

        Examples
        --------
        >>> Batches(torch.nn.Linear(2, 3), torch.zeros(4, 2)).first_output().shape
        torch.Size([2, 3])
        """
        args, kwargs = self.probe()
        with as_found(self._model), torch.no_grad(), _in_double(self._model, double):
            if double:
                args, kwargs = tuple(_doubled(v) for v in args), {k: _doubled(v) for k, v in kwargs.items()}
            output = self._model(*args, **kwargs)
        found = next((t for t in tensors_in(output) if t.is_floating_point()), None)
        if found is None:
            raise LayerError(
                f"the {type(self._model).__name__} returned no tensor to compare: pass check=False to go without."
            )
        return found.detach().to("cpu", copy=True)

    def digest(self) -> str:
        """Hash of all batches.

        Examples
        --------
        >>> model = torch.nn.Linear(2, 3)
        >>> a, b = (Batches(model, torch.full((4, 2), value)).digest() for value in (0.0, 1.0))
        >>> a == b
        False
        """
        sha = hashlib.sha256()
        for args, kwargs in self._calls:
            for key, value in [*enumerate(args), *sorted(kwargs.items())]:
                sha.update(f"{key}:".encode())
                if isinstance(value, torch.Tensor):
                    sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
                    sha.update(
                        value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
                    )
                else:
                    sha.update(repr(value).encode())
            sha.update(b"|")
        return sha.hexdigest()[:32]

    def _placed(self, call: Call) -> Call:
        home = home_of(self._model) or torch.device("cpu")

        def moved(value: Any) -> Any:
            return value.to(home) if isinstance(value, torch.Tensor) else value

        args, kwargs = call
        moved_kwargs = {key: moved(value) for key, value in kwargs.items()}
        return tuple(moved(value) for value in args), without_cache(self._model, moved_kwargs)


@contextlib.contextmanager
def _in_double(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Parameters and buffers in float64 inside; the very same ones as before afterwards."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if wanted and t.is_floating_point()}
    before = [(tensor, tensor.data) for tensor in tensors.values()]
    try:
        for tensor, data in before:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def _doubled(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _first_rows(call: Call, rows: int, tokens: int) -> Call:
    """The first rows of a batch: what has as many of them as its first tensor is cut.

    Sequences of token numbers are cut as well, with what has an entry for each token: what is learnt from the first of
    them holds for all.
    """
    args, kwargs = call
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
    if first is None or first.ndim == 0:
        return call
    sequences = first.ndim == 2 and not first.is_floating_point()

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        part = value[:rows] if len(value) == len(first) else value
        of_tokens = sequences and value.ndim == 2 and value.shape[1] == first.shape[1]
        return part[:, :tokens] if of_tokens else part

    return tuple(cut(value) for value in args), {key: cut(value) for key, value in kwargs.items()}
