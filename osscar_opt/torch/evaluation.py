"""Perplexity of a causal language model on windows of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from osscar_opt.errors import InputError
from osscar_opt.torch.collect import as_found
from osscar_opt.torch.recording import home_of

__all__ = ["perplexity", "token_windows"]

_LARGEST = 700.0  # the exponential of more is beyond float64


def token_windows(texts: Iterable[str], tokenizer: Any, count: int, length: int = 512) -> torch.Tensor:
    """Cut the first windows from texts joined end to end, a separator between them.

    Parameters
    ----------
    texts : iterable of str
        Read only as far as needed.
    tokenizer
        A transformers tokenizer; called on a text it gives ``input_ids``. The separator is its
        ``<|endoftext|>``, if its vocabulary has one, else its end-of-sequence token, else nothing.
    count : int
        Windows wanted.
    length : int, optional
        Tokens in a window.

    Returns
    -------
    torch.Tensor, shape (count, length)
        Token numbers.

    Raises
    ------
    InputError
        When the texts are too short for so many windows.

    Examples
    --------
    >>> tokenizer = AutoTokenizer.from_pretrained("gpt2-folder")  # doctest: +SKIP
    >>> token_windows(["A first text.", "A second."], tokenizer, count=2, length=4).shape  # doctest: +SKIP
    torch.Size([2, 4])
    """
    separator = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    tokens: list[int] = []
    for text in texts:
        tokens += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if separator is not None:
            tokens.append(separator)
        if len(tokens) >= count * length:
            break
    if len(tokens) < count * length:
        raise InputError(
            f"the text has {len(tokens)} tokens, too few for {count} windows of {length}: "
            f"give more text, or ask for at most {len(tokens) // length} windows."
        )
    return torch.tensor(tokens[: count * length]).view(count, length)


def perplexity(
    model: torch.nn.Module,
    windows: torch.Tensor,
    *,
    batch_size: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    r"""Perplexity: :math:`\exp` of the mean negative log-likelihood of every token but each window's first.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers causal language model: ``model(input_ids=...)`` has ``logits``. Run in evaluation mode,
        left in the mode it was found in.
    windows : torch.Tensor, shape (count, length)
        Token numbers; windows do not see each other.
    batch_size : int, optional
        Windows run at once; the logits of a batch are what takes the memory.
    progress : callable, optional
        Called with windows done and windows in all.

    Returns
    -------
    float
        Infinite when it is beyond float64.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> class Uniform(torch.nn.Module):
    ...     def forward(self, input_ids, use_cache=False):
    ...         return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 7))
    >>> round(perplexity(Uniform(), torch.zeros(3, 5, dtype=torch.long)), 6)
    7.0
    """
    count, length = windows.shape
    device = home_of(model) or torch.device("cpu")
    loss = 0.0
    with as_found(model), torch.no_grad():
        for start in range(0, count, batch_size):
            tokens = windows[start : start + batch_size].to(device)
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            loss += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
                )
            )
            if progress is not None:
                progress(min(start + batch_size, count), count)
    mean = loss / (count * (length - 1))
    return math.exp(mean) if mean < _LARGEST else math.inf
