"""Sums over the processes of torch.distributed, where a process group is initialised."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["add_up", "several", "sums_of_numbers"]


def several() -> bool:
    """Whether a process group of more than one rank is initialised.

    Examples
    --------
    >>> several()
    False
    """
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def add_up(values: torch.Tensor) -> None:
    """Replace values by their sums over all ranks, in place; the shapes must agree.

    Examples
    --------
    >>> values = torch.ones(3)
    >>> add_up(values)  # doctest: +SKIP
    """
    if torch.distributed.get_backend() == "nccl" and values.device.type == "cpu":
        there = values.cuda()  # NCCL knows no other memory
        torch.distributed.all_reduce(there)
        values.copy_(there)
    else:
        torch.distributed.all_reduce(values)


def sums_of_numbers(numbers: Sequence[int]) -> list[int]:
    """Sums of whole numbers over all ranks.

    Examples
    --------
    >>> sums_of_numbers([3, 0])  # doctest: +SKIP
    [6, 0]
    """
    values = torch.tensor(list(numbers), dtype=torch.int64)
    add_up(values)
    return [int(value) for value in values]
