"""Hidden states of all batches in front of a block: on the CPU, or beyond a size in files of a work folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from osscar_opt.torch.recording import home_of

__all__ = ["HiddenStates", "placed"]

_IN_MEMORY = 2**30  # bytes of hidden states beyond which they go to files, where there is a folder for them


class HiddenStates:
    """One tensor for each batch, on the CPU or in memory-mapped files.

    Parameters
    ----------
    states : sequence of torch.Tensor
    folder : path, optional
        Where files go if the tensors take more than `in_memory` bytes; they are removed by `close`.
    in_memory : int, optional
    name : str, optional
        Of the files.

    Examples
    --------
    >>> states = HiddenStates([torch.zeros(2, 3)])
    >>> states.put(0, torch.ones(2, 5))
    >>> states.get(0).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        states: Sequence[torch.Tensor],
        folder: Path | None = None,
        *,
        in_memory: int = _IN_MEMORY,
        name: str = "hidden",
    ) -> None:
        size = sum(state.numel() * state.element_size() for state in states)
        self._folder = folder if size > in_memory else None
        self._name = name
        self._states: list[torch.Tensor] = [torch.empty(0)] * len(states)
        self._files: set[Path] = set()
        for batch, state in enumerate(states):
            self.put(batch, state)

    def get(self, batch: int) -> torch.Tensor:
        """The tensor of a batch; it is not to be written into.

        Examples
        --------
        >>> HiddenStates([torch.zeros(2)]).get(0)
        tensor([0., 0.])
        """
        return self._states[batch]

    def put(self, batch: int, state: torch.Tensor) -> None:
        """Replace the tensor of a batch.

        Examples
        --------
        >>> HiddenStates([torch.zeros(2)]).put(0, torch.ones(3))
        """
        if self._folder is None:
            self._states[batch] = state.detach().to("cpu")
            return
        held = self._states[batch]
        if held.shape != state.shape or held.dtype != state.dtype or not self._files:
            path = self._folder / f"{self._name}-{batch}.bin"
            path.unlink(missing_ok=True)  # an older mapping of it goes on living until it is let go
            self._files.add(path)
            mapped = torch.from_file(str(path), shared=True, size=max(state.numel(), 1), dtype=state.dtype)
            held = self._states[batch] = mapped[: state.numel()].view(state.shape)
        held.copy_(state.detach())

    def close(self) -> None:
        """Let the tensors go, and remove their files.

        Examples
        --------
        >>> HiddenStates([torch.zeros(2)]).close()
        """
        self._states = []
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files.clear()


@contextlib.contextmanager
def placed(block: torch.nn.Module, device: torch.device | None) -> Iterator[None]:
    """Have a block on a device inside, and where it was afterwards.

    Parameters
    ----------
    block : torch.nn.Module
    device : torch.device or None
        None: where it is.

    Examples
    --------
    >>> with placed(torch.nn.Linear(2, 3), torch.device("cpu")):
    ...     pass
    """
    home = home_of(block)
    if device is None or home is None or home == device:
        yield
        return
    try:
        block.to(device)
        yield
    finally:
        block.to(home)
