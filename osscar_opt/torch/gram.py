r"""Second moments of a layer's inputs, raw or about their means, summed over batches in float64.

Rows are gathered in a buffer of fixed size, upcast on the way, and each full buffer is added to the sums at once: the
sums do not depend on how the rows came in batches, and the products are large enough for BLAS.

Central moments are never X'X/N - mean mean', which loses every digit when a mean is large. A buffer of k rows is
centred about its own mean m_k, and merged with the N rows before it (Chan, Golub and LeVeque, 1983):

.. math::

    S \leftarrow S + \sum_i (x_i - m_k)(x_i - m_k)' + \frac{k N}{k + N} (m_k - m)(m_k - m)'.

The last term enters as one more row of the buffer, so it costs nothing beside the product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osscar_opt.errors import LayerError
from osscar_opt.linalg.blas import mirror_lower, square_update
from osscar_opt.torch import ranks

__all__ = ["GramAccumulator"]

_BUFFERED = 1 << 20
_FEWEST, _MOST = 256, 4096
"""Entries of the buffer, 8 MB in float64, and the rows it has at least and at most."""

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
    central : bool, optional
        Take moments about the means, as a fit with an intercept needs them.
    blocks : int, optional
        Only so many blocks on the diagonal of X'X are wanted, as of a convolution with so many groups; of X'Y those
        between a block of inputs and its block of targets. What is outside is zero in the results.

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

    def __init__(
        self,
        width: int,
        *,
        target_width: int | None = None,
        name: str = "the layer",
        central: bool = False,
        blocks: int = 1,
    ) -> None:
        self.rows = 0
        self._width = width
        self._target_width = target_width
        self._name = name
        self._central = central
        self._blocks = blocks
        self._sums: _Sums | None = None  # made when the device is known
        self._combined = False

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
        if self._combined:
            raise LayerError(
                f"{self._name} was summed over all ranks already: no batch can be added any more."
            )
        if (targets is None) != (self._target_width is None):
            wanted = "no targets" if self._target_width is None else "targets with every batch"
            raise LayerError(f"{self._name} collects {wanted}: pass them as it was set up.")
        x = self._flat(inputs, self._width, mask, "inputs")
        y = None if targets is None else self._flat(targets, self._target_width or 0, mask, "targets")
        if y is not None and len(y) != len(x):
            raise LayerError(
                f"{self._name} got {len(x)} rows of inputs but {len(y)} rows of targets in one batch."
            )
        if self._sums is None:
            self._sums = self._new_sums(x.device)
        self._sums.take(x, y)
        self.rows += len(x)

    def combine(self, *, failed: bool = False) -> None:
        """Add up the sums of all ranks, where a process group of torch.distributed is initialised; else do nothing.

        Every rank must call it, also one that saw no row; each then holds the sums of all. Moments about means are
        merged about the common mean.

        Parameters
        ----------
        failed : bool, optional
            That this rank has an error to raise, which the others should not wait for.

        Raises
        ------
        LayerError
            When another rank failed.

        Examples
        --------
        >>> gram = GramAccumulator(1)
        >>> gram.add(torch.tensor([[1.0], [3.0]]))
        >>> gram.combine()
        >>> gram.rows
        2
        """
        if self._combined or not ranks.several():
            return
        self._combined = True
        total, failures = ranks.sums_of_numbers([self.rows, int(failed)])
        if failures and not failed:
            raise LayerError(f"{self._name} could not be collected on another rank: see the error there.")
        if failures or total == 0:
            return
        if self._sums is None:
            self._sums = self._new_sums(torch.device("cpu"))
        self._sums.merge_ranks(total)
        self.rows = total

    def second_moment(self) -> NDArray[np.float64]:
        """X'X / N, or with `central` the covariance (X - mean)'(X - mean) / N.

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
        return self._ready().second_moment(self.rows)

    def cross_moment(self) -> NDArray[np.float64]:
        """X'Y / N, or with `central` (X - mean)'(Y - mean) / N.

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
        return self._ready(targets=True).cross_moment(self.rows)

    def target_energy(self) -> float:
        """tr(Y'Y) / N, or with `central` that of Y - mean.

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
        return self._ready(targets=True).energy / self.rows

    def input_mean(self) -> NDArray[np.float64]:
        """Means of the inputs, shape (p,); only with `central`.

        Examples
        --------
        >>> gram = GramAccumulator(1, central=True)
        >>> gram.add(torch.tensor([[1.0], [3.0]]))
        >>> gram.input_mean(), gram.second_moment()
        (array([2.]), array([[1.]]))
        """
        return _as_array(self._ready(means=True).input_mean.clone())  # the sums go on

    def target_mean(self) -> NDArray[np.float64]:
        """Means of the targets, shape (q,); only with `central`.

        Examples
        --------
        >>> gram = GramAccumulator(1, target_width=1, central=True)
        >>> gram.add(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]]))
        >>> gram.target_mean()
        array([1.])
        """
        return _as_array(self._ready(targets=True, means=True).target_mean.clone())

    def _ready(self, *, targets: bool = False, means: bool = False) -> _Sums:
        if self._sums is None or self.rows == 0 or (targets and self._target_width is None):
            raise LayerError(
                f"{self._name} has no calibration rows yet: add at least one batch with unmasked rows."
            )
        if means and not self._central:
            raise LayerError(f"{self._name} collects no means: set it up with central=True.")
        self._sums.flush()
        return self._sums

    def _new_sums(self, device: torch.device) -> _Sums:
        home = torch.device("cpu") if device.type == "mps" else device
        return _Sums(self._width, self._target_width, home, central=self._central, blocks=self._blocks)

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
        # a sum is finite only if all terms are, and costs a tenth of asking each, which is left to sums that overflow
        if not bool(torch.isfinite(rows.sum())) and not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows).all(dim=1)).sum())
            raise LayerError(
                f"{self._name} got NaN or infinite {what} in {bad} of {len(rows)} rows: "
                "run the model in float32 or bfloat16, or leave those batches out."
            )
        return rows


class _Sums:
    """The running sums and the buffer before them, on one device; G blocks of inputs and targets."""

    def __init__(
        self, width: int, target_width: int | None, home: torch.device, *, central: bool, blocks: int
    ) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            with torch.inference_mode(False):  # or sums begun in that mode could not be added to outside it
                return torch.zeros(*shape, dtype=torch.float64, device=home)

        self.energy = 0.0
        self.input_mean = zeros(width)
        self.target_mean = zeros(target_width or 0)
        self._central = central
        self._targets = target_width is not None
        p, q = width // blocks, (target_width or 0) // blocks
        self._gram = zeros(blocks, p, p)  # of a single block only what is on and above the diagonal
        self._cross = zeros(blocks, p, q)
        self._room = min(_MOST, max(_FEWEST, _BUFFERED // max(width, 1)))
        # one row more than there is room for: the term that merges the means
        self._x = zeros(self._room + 1, width)
        self._y = zeros(self._room + 1, target_width or 0)
        self._held = 0
        self._summed = 0  # rows in the sums, those in the buffer not among them

    def take(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        at = 0
        while at < len(x):
            count = min(self._room - self._held, len(x) - at)
            self._x[self._held : self._held + count].copy_(x[at : at + count])
            if y is not None:
                self._y[self._held : self._held + count].copy_(y[at : at + count])
            at += count
            self._held += count
            if self._held == self._room:
                self.flush()

    def flush(self) -> None:
        """Add the rows of the buffer to the sums."""
        count, before = self._held, self._summed
        if count == 0:
            return
        self._held, self._summed = 0, before + count
        rows = count
        if self._central:
            share = count / (count + before)
            for buffer, mean in ((self._x, self.input_mean), (self._y, self.target_mean)):
                own = buffer[:count].mean(0)
                buffer[:count] -= own
                own -= mean
                buffer[count] = own * (before * share) ** 0.5
                mean += share * own
            rows += 1
        self._add_products(rows)

    def _add_products(self, rows: int) -> None:
        """Add the products of the first rows of the buffer to the sums."""
        x, y = self._x[:rows], self._y[:rows]
        self._add_squares(x)
        if self._targets:
            blocks, p, q = self._cross.shape
            if blocks == 1:
                self._cross[0].addmm_(x.T, y)
            else:
                self._cross.baddbmm_(
                    x.view(-1, blocks, p).permute(1, 2, 0), y.view(-1, blocks, q).transpose(0, 1)
                )
            self.energy += float(y.square().sum())

    def _add_squares(self, x: torch.Tensor) -> None:
        blocks, p, _ = self._gram.shape
        if blocks > 1:
            parts = x.view(-1, blocks, p)
            self._gram.baddbmm_(parts.permute(1, 2, 0), parts.transpose(0, 1))
        elif x.device.type == "cpu":
            # half the operations of the product, which torch has no function for
            square_update(self._gram[0].numpy().T, x.numpy().T, 1.0)
        else:
            step = max(_MIN_BLOCK, -(-p // 8))
            for start in range(0, p, step):
                stop = min(start + step, p)
                self._gram[0, start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])

    def merge_ranks(self, total: int) -> None:
        """Turn the sums of this rank into those of all ranks, of `total` rows."""
        self.flush()
        if self._central:
            for buffer, mean in ((self._x, self.input_mean), (self._y, self.target_mean)):
                own = mean.clone()
                ranks.add_up(mean.mul_(self._summed / total))
                buffer[0] = (own - mean) * self._summed**0.5
            self._add_products(1)
        ranks.add_up(self._gram)
        if self._targets:
            ranks.add_up(self._cross)
            energy = self._cross.new_tensor([self.energy])
            ranks.add_up(energy)
            self.energy = float(energy)
        self._summed = total

    def second_moment(self, rows: int) -> NDArray[np.float64]:
        if len(self._gram) == 1:
            moment = _as_array(self._gram[0] / rows)
            mirror_lower(moment.T)  # the upper triangle holds what was summed
            return moment
        symmetric = 0.5 * (self._gram + self._gram.transpose(1, 2))
        return _as_array(_block_diagonal(symmetric / rows))

    def cross_moment(self, rows: int) -> NDArray[np.float64]:
        scaled = self._cross / rows
        return _as_array(scaled[0] if len(scaled) == 1 else _block_diagonal(scaled))


def _block_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    """Matrix with the blocks (G, a, b) on its diagonal and zeros elsewhere."""
    count, a, b = blocks.shape
    whole = blocks.new_zeros(count, a, count, b)
    index = torch.arange(count, device=blocks.device)
    whole[index, :, index, :] = blocks
    return whole.view(count * a, count * b)


def _as_array(values: torch.Tensor) -> NDArray[np.float64]:
    result: NDArray[Any] = values.cpu().numpy()
    return result
