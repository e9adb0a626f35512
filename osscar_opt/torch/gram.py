"""Second moments of a layer's inputs, summed over batches in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osscar_opt.errors import LayerError
from osscar_opt.linalg.blas import mirror_lower

__all__ = ["GramAccumulator"]

_CHUNK_ROWS = 8192  # bounds the memory of the float64 copy of a batch
_MIN_BLOCK = 256  # narrower blocks save less in arithmetic than they lose in matrix-product speed


class GramAccumulator:
    """Sums of X'X, and of X'Y and Y'Y where there are targets, over any number of batches.

    Rows are upcast to float64 before the products, so that float16 and bfloat16 inputs neither overflow nor
    lose digits, and the result is the same to rounding however the rows are cut into batches. Sums stay on
    the device of the first batch (on the CPU for devices without float64).

    Parameters
    ----------
    width : int
        Width p of the inputs.
    target_width : int, optional
        Width q of the targets; None when there are none.
    name : str, optional
        Name of the layer, for the sentences of errors.

    Attributes
    ----------
    rows : int
        Rows N counted so far, padding left out.

    Examples
    --------
    >>> import torch
    >>> gram = GramAccumulator(3)
    >>> gram.add(torch.ones(2, 3, 3, dtype=torch.float16), mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    >>> gram.rows
    5
    >>> gram.second_moment()
    array([[1., 1., 1.],
           [1., 1., 1.],
           [1., 1., 1.]])
    """

    def __init__(self, width: int, *, target_width: int | None = None, name: str = "the layer") -> None:
        self.rows = 0
        self._width = width
        self._target_width = target_width
        self._name = name
        self._gram: torch.Tensor | None = None  # (p, p), only blocks on and above the diagonal
        self._cross: torch.Tensor | None = None  # (p, q)
        self._energy = 0.0

    def add(
        self, inputs: torch.Tensor, targets: torch.Tensor | None = None, *, mask: torch.Tensor | None = None
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        inputs : torch.Tensor, shape (..., p)
            Any floating dtype.
        targets : torch.Tensor, shape (..., q), optional
            As many rows as `inputs`; required exactly when `target_width` was given.
        mask : torch.Tensor, shape (...), optional
            Nonzero for rows that count, zero for padding, one entry for each row of `inputs`.

        Raises
        ------
        LayerError
            When shapes disagree, dtypes are not floating, or a row that counts holds NaN or infinity; nothing
            of the batch was added then.

        Examples
        --------
        >>> gram = GramAccumulator(1, target_width=2)
        >>> gram.add(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> gram.rows
        2
        """
        if (targets is None) != (self._target_width is None):
            wanted = "no targets" if self._target_width is None else "targets with every batch"
            raise LayerError(f"{self._name} collects {wanted}: pass them as it was set up.")
        x = self._flat(inputs, self._width, mask, "inputs")
        y = None if targets is None else self._flat(targets, self._target_width or 0, mask, "targets")
        if y is not None and len(y) != len(x):
            raise LayerError(
                f"{self._name} got {len(x)} rows of inputs but {len(y)} rows of targets in one batch."
            )
        gram = self._sums(x.device)
        for start in range(0, len(x), _CHUNK_ROWS):
            part = x[start : start + _CHUNK_ROWS].to(gram.device).to(torch.float64)
            _add_upper(gram, part)
            if y is not None and self._cross is not None:
                goal = y[start : start + _CHUNK_ROWS].to(gram.device).to(torch.float64)
                self._cross.addmm_(part.T, goal)
                self._energy += float(goal.square().sum())
        self.rows += len(x)

    def second_moment(self) -> NDArray[np.float64]:
        """X'X / N.

        Returns
        -------
        ndarray, shape (p, p)
            Exactly symmetric.

        Raises
        ------
        LayerError
            When no row was added.

        Examples
        --------
        >>> gram = GramAccumulator(1)
        >>> gram.add(torch.tensor([[1.0], [3.0]]))
        >>> gram.second_moment()
        array([[5.]])
        """
        moment = _as_array(self._ready(self._gram) / self.rows)
        mirror_lower(moment.T)  # the upper triangle holds what was summed
        return moment

    def cross_moment(self) -> NDArray[np.float64]:
        """X'Y / N.

        Returns
        -------
        ndarray, shape (p, q)

        Raises
        ------
        LayerError
            When no row, or no target, was added.

        Examples
        --------
        >>> gram = GramAccumulator(1, target_width=2)
        >>> gram.add(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> gram.cross_moment()
        array([[0.5, 1.5]])
        """
        return _as_array(self._ready(self._cross) / self.rows)

    def target_energy(self) -> float:
        """tr(Y'Y) / N.

        Returns
        -------
        float

        Raises
        ------
        LayerError
            When no row, or no target, was added.

        Examples
        --------
        >>> gram = GramAccumulator(1, target_width=1)
        >>> gram.add(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]]))
        >>> gram.target_energy()
        2.0
        """
        self._ready(self._cross)
        return self._energy / self.rows

    def _ready(self, total: torch.Tensor | None) -> torch.Tensor:
        if total is None or self.rows == 0:
            raise LayerError(
                f"{self._name} has no calibration rows yet: add at least one batch with unmasked rows."
            )
        return total

    def _sums(self, device: torch.device) -> torch.Tensor:
        if self._gram is None:
            home = torch.device("cpu") if device.type == "mps" else device
            self._gram = torch.zeros(self._width, self._width, dtype=torch.float64, device=home)
            if self._target_width is not None:
                self._cross = torch.zeros(self._width, self._target_width, dtype=torch.float64, device=home)
        return self._gram

    def _flat(self, values: torch.Tensor, width: int, mask: torch.Tensor | None, what: str) -> torch.Tensor:
        """Return the rows that count, checked."""
        if values.ndim == 0 or values.shape[-1] != width:
            raise LayerError(
                f"{self._name} expects {what} of width {width}, got shape {tuple(values.shape)}."
            )
        if not values.is_floating_point():
            raise LayerError(f"{self._name} expects floating-point {what}, got {values.dtype}.")
        rows = values.detach().reshape(-1, width)
        if mask is not None:
            if mask.numel() != len(rows):
                raise LayerError(
                    f"{self._name} got a mask of shape {tuple(mask.shape)} for {what} of shape "
                    f"{tuple(values.shape)}: it needs one entry for each row."
                )
            rows = rows[mask.reshape(-1).to(rows.device) != 0]
        if not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows).all(dim=1)).sum())
            raise LayerError(
                f"{self._name} got NaN or infinite {what} in {bad} of {len(rows)} rows: "
                "run the model in float32 or bfloat16, or leave those batches out."
            )
        return rows


def _add_upper(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add X'X to the blocks on and above the diagonal: little more than half of the full product's work."""
    width = total.shape[0]
    step = max(_MIN_BLOCK, -(-width // 8))
    for start in range(0, width, step):
        stop = min(start + step, width)
        total[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def _as_array(values: torch.Tensor) -> NDArray[np.float64]:
    result: NDArray[Any] = values.cpu().numpy()
    return result
