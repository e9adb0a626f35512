"""N:M patterns: of every M consecutive inputs at most N have a weight, for each output or each block of outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.errors import InputError

__all__ = ["Pattern"]


@dataclass(frozen=True)
class Pattern:
    """Of every `of` consecutive inputs, `keep` stay; `columns` consecutive outputs share one mask.

    Parameters
    ----------
    keep, of : int
        N and M of N:M.
    columns : int, optional
        1: each output has a mask of its own.  More: block-balanced, one mask for each so many outputs.

    Examples
    --------
    >>> Pattern.parse("2:4")
    Pattern(keep=2, of=4, columns=1)
    """

    keep: int
    of: int
    columns: int = 1

    def __post_init__(self) -> None:
        """Refuse patterns that are none."""
        if not 0 <= self.keep <= self.of or self.of < 1 or self.columns < 1:
            raise InputError(
                f"{self.keep}:{self.of} for {self.columns} outputs at once is no pattern: 0 <= N <= M, and both M and "
                "columns at least 1."
            )

    @classmethod
    def parse(cls, spec: str | Pattern, columns: int = 1) -> Pattern:
        """Read "N:M", or take a pattern as it is.

        Examples
        --------
        >>> Pattern.parse("4:8", columns=16)
        Pattern(keep=4, of=8, columns=16)
        """
        if isinstance(spec, Pattern):
            return spec
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(spec))
        if found is None:
            raise InputError(f"pattern {spec!r} is not understood: write N:M, for instance '2:4'.")
        return cls(int(found[1]), int(found[2]), columns)

    def blocks(self, p: int) -> IntArray:
        """The label of the block of inputs that each of p inputs is in.

        Examples
        --------
        >>> Pattern(1, 2).blocks(4)
        array([0, 0, 1, 1])
        """
        if p % self.of:
            raise InputError(
                f"{self.of} does not divide the {p} inputs: {self.keep}:{self.of} masks need that."
            )
        return np.arange(p) // self.of

    def outputs(self, q: int) -> list[slice]:
        """The outputs that share a mask.

        Examples
        --------
        >>> Pattern(1, 2, columns=2).outputs(4)
        [slice(0, 2, None), slice(2, 4, None)]
        """
        if q % self.columns:
            raise InputError(f"{self.columns} does not divide the {q} outputs: blocks of outputs need that.")
        return [slice(first, first + self.columns) for first in range(0, q, self.columns)]

    def shared(self, scores: FloatArray) -> FloatArray:
        """Sums of the scores of the weights that share a place in a mask, (p, masks).

        Examples
        --------
        >>> Pattern(1, 2, columns=2).shared(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[3.],
               [7.]])
        """
        p, q = scores.shape
        self.outputs(q)
        return np.asarray(scores.reshape(p, q // self.columns, self.columns).sum(axis=2))

    def best(self, scores: FloatArray) -> BoolArray:
        """The mask (p, q) that keeps the highest summed scores; of equal ones the first.

        Examples
        --------
        >>> Pattern(1, 2).best(np.array([[1.0], [2.0], [4.0], [3.0]])).ravel()
        array([False,  True,  True, False])
        """
        shared = self.shared(scores)
        self.blocks(len(shared))
        by_block = shared.reshape(-1, self.of, shared.shape[1])
        order = np.argsort(-by_block, axis=1, kind="stable")
        mask = np.zeros(by_block.shape, dtype=bool)
        np.put_along_axis(mask, order[:, : self.keep], True, axis=1)
        return np.repeat(mask.reshape(shared.shape), self.columns, axis=1)

    def violation(self, mask: BoolArray) -> str:
        """One clause saying how a mask breaks the pattern, or "".

        Examples
        --------
        >>> Pattern(1, 2).violation(np.ones((2, 1), dtype=bool))
        'keeps 2 of the inputs 0..1 for output 0, more than 1'
        """
        counts = mask.reshape(-1, self.of, mask.shape[1]).sum(axis=1)
        if np.any(counts > self.keep):
            block, output = np.argwhere(counts > self.keep)[0]
            inputs = f"{block * self.of}..{(block + 1) * self.of - 1}"
            return f"keeps {counts[block, output]} of the inputs {inputs} for output {output}, more than {self.keep}"
        leaders = mask[:, np.arange(mask.shape[1]) // self.columns * self.columns]
        if np.any(mask != leaders):
            output = int(np.argwhere(mask != leaders)[0][1])
            return f"differs between output {output} and another of its block"
        return ""

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" + (f" for {self.columns} outputs at once" if self.columns > 1 else "")
