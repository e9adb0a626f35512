"""The packaged pictures: Tux Paint's stamps (Debian's tuxpaint-stamps-default), photographs and drawings of things."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osscar_opt.errors import UnavailableError
from osscar_opt.torch.smollm2 import require_packages

__all__ = [
    "STAMPS",
    "STAMPS_NAME",
    "as_pixels",
    "calibration_pictures",
    "held_out_pictures",
    "picture",
    "split_stamps",
    "stamps",
]

STAMPS = Path("/usr/share/tuxpaint/stamps")
STAMPS_NAME = "Tux Paint stamps (Debian's tuxpaint-stamps-default)"


@cache
def stamps() -> tuple[Path, ...]:
    """Photographs and drawings of things; no symbols, cartoons, toys, mirror images.

    Raises
    ------
    UnavailableError
        When the Debian package is not installed.

    Examples
    --------
    >>> stamps()[0].suffix  # doctest: +SKIP
    '.png'
    """
    if not STAMPS.is_dir():
        raise UnavailableError(
            f"there is no {STAMPS}: run apt-get install --no-install-recommends tuxpaint-stamps-default."
        )
    unwanted = re.compile(r"/symbols/|cartoon|toys|_mirror|_flip")
    return tuple(path for path in sorted(STAMPS.rglob("*.png")) if not unwanted.search(str(path)))


def split_stamps(seed: int = 0) -> tuple[list[Path], list[Path]]:
    """Half to calibrate on, half held out; pictures of one folder and similar names (lion, lion-2) stay together.

    Examples
    --------
    >>> calibrate, hold = split_stamps()  # doctest: +SKIP
    """
    kinds: dict[str, list[Path]] = {}
    for path in stamps():
        kinds.setdefault(re.sub(r"[-_ ]?\d*$", "", str(path.with_suffix(""))), []).append(path)
    order = sorted(kinds)
    random.Random(seed).shuffle(order)
    halves = (
        [path for kind in order[::2] for path in kinds[kind]],
        [path for kind in order[1::2] for path in kinds[kind]],
    )
    return halves


def picture(path: Path, side: int = 224, margin: float = 0.06) -> Any:
    """On white, made square by white at the sides, `side` pixels wide (a Pillow image).

    Examples
    --------
    >>> picture(stamps()[0]).size  # doctest: +SKIP
    (224, 224)
    """
    require_packages(["PIL"], "reading pictures")
    from PIL import Image

    with Image.open(path) as opened:
        stamp = opened.convert("RGBA")
    edge = round(max(stamp.size) * (1 + 2 * margin))
    canvas = Image.new("RGBA", (edge, edge), "white")
    canvas.alpha_composite(stamp, ((edge - stamp.width) // 2, (edge - stamp.height) // 2))
    return canvas.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def as_pixels(image: Any) -> Tensor:
    """Bytes (3, height, width) of a Pillow image.

    Examples
    --------
    >>> as_pixels(picture(stamps()[0])).shape  # doctest: +SKIP
    torch.Size([3, 224, 224])
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def held_out_pictures() -> Tensor:
    """The held-out half, (rows, 3, 224, 224) bytes.

    Examples
    --------
    >>> pixels = held_out_pictures()  # doctest: +SKIP
    """
    return torch.stack([as_pixels(picture(path)) for path in split_stamps()[1]])


def calibration_pictures(views: int = 3, seed: int = 0) -> Tensor:
    """Each picture of the calibration half whole, and `views - 1` random crops of it, some of them mirrored.

    Examples
    --------
    >>> pixels = calibration_pictures(views=1)  # doctest: +SKIP
    """
    from PIL import Image

    draw = random.Random(seed)
    rows = []
    for path in split_stamps()[0]:
        large = picture(path, 320)
        rows.append(as_pixels(large.resize((224, 224), Image.Resampling.BICUBIC)))
        for _ in range(views - 1):
            edge = round(320 * draw.uniform(0.6, 1.0))
            left, top = draw.randint(0, 320 - edge), draw.randint(0, 320 - edge)
            crop = large.resize((224, 224), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
            rows.append(
                as_pixels(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else crop)
            )
    order = list(range(len(rows)))
    draw.shuffle(order)
    return torch.stack(rows)[order]
