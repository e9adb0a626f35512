"""Fashion-MNIST (Debian's dataset-fashion-mnist), and two small networks trained on it here."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from osscar_opt.errors import UnavailableError
from osscar_opt.torch.packaged.models import Counted, Packaged, Progress, one_thread

__all__ = ["FOLDER", "IMAGES", "fashion_mnist", "packaged_cnn", "packaged_mlp", "small_cnn", "small_mlp"]

FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGES = 500
"""Images that the convolutions are calibrated on; each has as many rows as places."""

MLP_IMAGES = 4000

_BATCH = 128
_DATA = "Fashion-MNIST (Debian's dataset-fashion-mnist)"


def fashion_mnist(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in 0..1 and their labels.

    Parameters
    ----------
    part : {"train", "t10k"}

    Raises
    ------
    UnavailableError
        When the Debian package is not installed.

    Examples
    --------
    >>> fashion_mnist("t10k")[0].shape  # doctest: +SKIP
    torch.Size([10000, 1, 28, 28])
    """
    if not FOLDER.is_dir():
        raise UnavailableError(f"{FOLDER} is missing: run apt-get install dataset-fashion-mnist.")
    images = gzip.decompress((FOLDER / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FOLDER / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(pixels), torch.from_numpy(
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    )


_TRAINED: dict[str, tuple[nn.Sequential, float]] = {}


def small_cnn(progress: Progress | None = None) -> tuple[nn.Sequential, float]:
    """A network with two 3 x 3 convolutions of 32 input channels ("3", "5"), trained for one epoch; made once.

    Parameters
    ----------
    progress : callable, optional
        Called with the batches done and the batches in all, in training and in collecting.

    Returns
    -------
    model : torch.nn.Sequential
    accuracy : float
        On the test images.

    Examples
    --------
    >>> model, accuracy = small_cnn()  # doctest: +SKIP
    """
    if "cnn" in _TRAINED:
        return _TRAINED["cnn"]
    with one_thread():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 49, 10)),
        )
        _TRAINED["cnn"] = model, _trained(model, 1, progress)
    return _TRAINED["cnn"]


def small_mlp(progress: Progress | None = None) -> tuple[nn.Sequential, float]:
    """A network 784-512-256-10 (its Linears are "1", "3" and "5"), trained for three epochs; and its test accuracy.

    Examples
    --------
    >>> model, accuracy = small_mlp()  # doctest: +SKIP
    """
    if "mlp" in _TRAINED:
        return _TRAINED["mlp"]
    with one_thread():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 512), nn.ReLU()),
            *(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)),
        )
        _TRAINED["mlp"] = model, _trained(model, 3, progress)
    return _TRAINED["mlp"]


def packaged_cnn(progress: Progress | None = None) -> Packaged:
    """The convolutional network as the catalogue calibrates it.

    Examples
    --------
    >>> packaged_cnn().made_of["images"]  # doctest: +SKIP
    500
    """
    model, accuracy = small_cnn(progress)
    made_of = {
        "model": f"32-32-64 channel CNN, one epoch of Fashion-MNIST, test accuracy {accuracy:.3f}",
        "data": _DATA,
        "images": IMAGES,
    }
    return Packaged(model, list(torch.split(fashion_mnist("train")[0][:IMAGES], 50)), made_of)


def packaged_mlp(progress: Progress | None = None) -> Packaged:
    """The fully connected network as the catalogue calibrates it.

    Examples
    --------
    >>> packaged_mlp().made_of["images"]  # doctest: +SKIP
    4000
    """
    model, accuracy = small_mlp(progress)
    made_of = {
        "model": f"784-512-256-10 MLP, three epochs of Fashion-MNIST, test accuracy {accuracy:.3f}",
        "data": _DATA,
        "images": MLP_IMAGES,
    }
    return Packaged(model, list(torch.split(fashion_mnist("train")[0][:MLP_IMAGES], 500)), made_of)


def _trained(model: nn.Sequential, epochs: int, progress: Progress | None) -> float:
    """Train by Adam, put the model into evaluation mode, and return its test accuracy."""
    images, labels = fashion_mnist("train")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = [batch for _ in range(epochs) for batch in torch.split(torch.randperm(len(images)), _BATCH)]
    for batch in Counted(batches, progress):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimiser.step()
    model.eval()
    images, labels = fashion_mnist("t10k")
    with torch.no_grad():
        pairs = zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    return right / len(images)
