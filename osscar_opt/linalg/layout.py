"""Where the rows of groups are stored: segments of groups of one size, one after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osscar_opt._typing import BoolArray, IntArray

__all__ = ["Segment", "merged_spans", "rows_by_group", "segments"]


@dataclass
class Segment:
    """A run of `groups`, all of `size` rows, stored one after another from row `start`.

    Slots before `first` hold groups that a one-sided tableau has dropped.
    """

    size: int
    start: int
    groups: IntArray
    first: int = 0

    @property
    def active(self) -> IntArray:
        return self.groups[self.first :]

    @property
    def span(self) -> slice:
        return self.rows(self.first, len(self.groups))

    def row_numbers(self, slots: IntArray) -> IntArray:
        """Stored rows of the groups in some slots."""
        within = self.start + np.arange(self.size)
        return np.asarray((slots[:, None] * self.size + within).ravel(), dtype=np.int64)

    def drop(self, gone: BoolArray) -> tuple[IntArray, IntArray]:
        """Drop active groups: the slots (movers) whose groups must take the places (holes) of others, in order."""
        first = self.first + int(gone.sum())
        holes = first + np.flatnonzero(gone[first - self.first :])
        movers = self.first + np.flatnonzero(~gone[: first - self.first])
        self.first = first
        return movers, holes

    def rows(self, slot: int, stop: int | None = None) -> slice:
        stop = slot + 1 if stop is None else stop
        return slice(self.start + slot * self.size, self.start + stop * self.size)


def rows_by_group(group_of_row: IntArray, n: int) -> list[IntArray]:
    """The rows of each of n groups, increasing."""
    order = np.argsort(group_of_row, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group_of_row, minlength=n))[:-1])


def segments(rows_of_group: list[IntArray], *runs: IntArray) -> list[Segment]:
    """Segments for several runs of groups, in that order, each run split by size; rows numbered from 0."""
    found: list[Segment] = []
    start = 0
    for groups in runs:
        sizes = np.array([len(rows_of_group[g]) for g in groups], dtype=np.int64)
        for size in np.unique(sizes):
            found.append(Segment(int(size), start, groups[sizes == size]))
            start = found[-1].span.stop
    return found


def merged_spans(parts: list[Segment]) -> list[slice]:
    """The active rows of all segments, as few slices as possible."""
    spans: list[slice] = []
    for segment in parts:
        span = segment.span
        if spans and spans[-1].stop == span.start:
            spans[-1] = slice(spans[-1].start, span.stop)
        elif span.stop > span.start:
            spans.append(span)
    return spans
