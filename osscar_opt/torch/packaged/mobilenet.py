"""MobileNetV2 (Sandler et al., 2018, table 2), with the parameter names of torchvision's checkpoints.

torchvision has no build for every torch; its weights, which packages carry, load strictly into this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["TABLE", "InvertedResidual", "MobileNetV2"]

Row = tuple[int, int, int, int]  # expansion, channels, blocks, stride of the first block

TABLE: tuple[Row, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _convolution(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; the input is added where the shapes agree.

    Examples
    --------
    >>> InvertedResidual(8, 8, 1, 6)(torch.zeros(1, 8, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [_convolution(inputs, inner)] if expansion != 1 else []
        self.use_res_connect = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *expand,
            _convolution(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return x + made if self.use_res_connect else made


class MobileNetV2(nn.Module):
    """MobileNetV2, or one of other widths.

    Parameters
    ----------
    table : sequence of (expansion, channels, blocks, stride of the first block)
    stem, last, classes : int
        Channels after the first and after the last convolution, and outputs.

    Examples
    --------
    >>> MobileNetV2(((1, 6, 1, 1), (4, 10, 2, 2)), stem=8, last=24, classes=7)(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 7])
    """

    def __init__(
        self, table: Sequence[Row] = TABLE, *, stem: int = 32, last: int = 1280, classes: int = 1000
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, stem, 3, 2)]
        width = stem
        for expansion, channels, blocks, stride in table:
            for block in range(blocks):
                layers.append(InvertedResidual(width, channels, stride if block == 0 else 1, expansion))
                width = channels
        layers.append(_convolution(width, last))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        scores: Tensor = self.classifier(torch.flatten(x, 1))
        return scores
