"""A batch to show a transformers model what it is made for, when there is no data at hand."""

from __future__ import annotations

from typing import Any

import torch

from osscar_opt.errors import LayerError

__all__ = ["example_batch"]

_TOKENS = 8


def example_batch(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Token numbers, or a picture of noise, of the size that the model's configuration asks for.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model: its ``main_input_name`` is ``input_ids`` or ``pixel_values``.

    Returns
    -------
    dict of str to torch.Tensor
        One row.

    Raises
    ------
    LayerError
        When the model does not say what it takes, or takes something else.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> model = torch.nn.Linear(2, 2)
    >>> model.main_input_name, model.config = "input_ids", SimpleNamespace(vocab_size=5)
    >>> example_batch(model)["input_ids"].shape
    torch.Size([1, 8])
    """
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    draw = torch.Generator().manual_seed(0)
    if name == "input_ids" and hasattr(config, "vocab_size"):
        return {name: torch.randint(0, config.vocab_size, (1, _TOKENS), generator=draw)}
    if name == "pixel_values" and config is not None:
        size = getattr(config, "image_size", None) or 64
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        shape = (1, getattr(config, "num_channels", 3), height, width)
        return {name: torch.rand(shape, generator=draw)}
    raise LayerError(
        f"the {type(model).__name__} takes {name or 'inputs it does not tell of'}: call trace_coupling from Python, "
        "with a batch."
    )
