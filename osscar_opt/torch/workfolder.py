"""What a run has finished, in memory or in a folder from which a later run goes on.

Every finished site is one .safetensors file: the mask of its units, the weights and the bias of each layer that reads
them, in the layer's own dtype, and its row of the report.  ``run.json`` says what the run is.  Files are written aside
and renamed, so that a killed process leaves none of them in half.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from osscar_opt._typing import BoolArray
from osscar_opt.errors import FormatError, InputError

__all__ = ["Results", "SiteResult"]

_FORMAT = "osscar_opt pruning run"
_VERSION = 1
_RUN = "run.json"


@dataclass(frozen=True)
class SiteResult:
    """What became of a site.

    Attributes
    ----------
    name : str
    units : (n,) mask
        True = kept.
    layers : dict of str to (torch.Tensor, torch.Tensor or None)
        For each layer that reads the units its weights (p, q) and its bias, None for one that stays; on the CPU, in the
        layer's dtype.
    row : dict
        Its row of the report.

    Examples
    --------
    >>> import numpy as np
    >>> SiteResult("fc2", np.array([True, False]), {}, {}).name
    'fc2'
    """

    name: str
    units: BoolArray
    layers: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = field(repr=False)
    row: dict[str, Any] = field(repr=False)


class Results:
    """Finished sites, by name.

    Parameters
    ----------
    folder : path, optional
        Where they are written and looked for; None: they are held in memory.
    fingerprint : mapping
        What the run is, as JSON can hold it; results of another one are refused.
    names : sequence of str
        All sites of the run, in order.

    Raises
    ------
    InputError
        When the folder holds another run, or something else than a run.

    Examples
    --------
    >>> import numpy as np
    >>> results = Results(None, {}, ["fc2"])
    >>> results.put(SiteResult("fc2", np.array([True, False]), {}, {}))
    >>> "fc2" in results, results.get("fc2").units
    (True, array([ True, False]))
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any], names: list[str]) -> None:
        self._folder = folder
        self._held: dict[str, SiteResult] = {}
        self._paths: dict[str, Path] = {}
        if folder is not None:
            _open(folder, dict(fingerprint))
            self._paths = {name: folder / f"site-{i:04d}.safetensors" for i, name in enumerate(names)}

    def __contains__(self, name: str) -> bool:
        return name in self._held or (name in self._paths and self._paths[name].is_file())

    def put(self, result: SiteResult) -> None:
        """Add a finished site.

        Examples
        --------
        >>> import numpy as np
        >>> Results(None, {}, ["fc2"]).put(SiteResult("fc2", np.array([True]), {}, {}))
        """
        if self._folder is None:
            self._held[result.name] = result
            return
        from safetensors.torch import save_file

        tensors = {"units": torch.from_numpy(result.units.astype("uint8"))}
        for layer, (weights, bias) in result.layers.items():
            tensors[f"weights:{layer}"] = weights.contiguous()
            if bias is not None:
                tensors[f"bias:{layer}"] = bias.contiguous()
        path = self._paths[result.name]
        aside = path.with_suffix(".part")
        save_file(tensors, aside, metadata={"site": result.name, "row": json.dumps(result.row)})
        _rename(aside, path)

    def get(self, name: str) -> SiteResult:
        """A finished site.

        Raises
        ------
        FormatError
            When its file cannot be read.

        Examples
        --------
        >>> import numpy as np
        >>> results = Results(None, {}, ["fc2"])
        >>> results.put(SiteResult("fc2", np.array([True]), {}, {"kept": 1}))
        >>> results.get("fc2").row
        {'kept': 1}
        """
        if name in self._held:
            return self._held[name]
        from safetensors import SafetensorError, safe_open

        path = self._paths[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
                metadata = file.metadata() or {}
            units = tensors.pop("units").numpy().astype(bool)
            row = json.loads(metadata["row"])
            if metadata["site"] != name:
                raise KeyError(name)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise FormatError(
                f"{path} does not hold the site {name}: delete it, and it is done anew."
            ) from error
        layers = {
            key.removeprefix("weights:"): (value, tensors.get(f"bias:{key.removeprefix('weights:')}"))
            for key, value in tensors.items()
            if key.startswith("weights:")
        }
        return SiteResult(name, units, layers, row)


def _open(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Begin a run in a folder, or make sure that the one in it is this one."""
    path = folder / _RUN
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the work folder {folder} is a file: give another one.")
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"the work folder {folder} holds something else than a pruning run: give an empty or a new one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        begun = {"format": _FORMAT, "version": _VERSION, "run": fingerprint}
        aside.write_text(json.dumps(begun, indent=1), encoding="utf-8")
        _rename(aside, path)
        return
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        known = document["format"] == _FORMAT and document["version"] == _VERSION
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(
            f"{path} is not that of a pruning run of this version: give an empty or a new folder."
        )
    _require_same(folder, document["run"], json.loads(json.dumps(fingerprint)))


def _require_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [key for key in here if there.get(key) != here[key]]
    if not differing:
        return
    key = differing[0]
    told = _difference(there.get(key), here[key])
    said = f"another {key}" if told is None else f"{key} {told[0]}, not {told[1]}"
    raise InputError(
        f"the work folder {folder} holds a run with {said}: call with what it was begun with to go on, "
        "or give another folder."
    )


def _difference(there: Any, here: Any) -> tuple[str, str] | None:
    """What to say of two values; None if they would tell nobody anything, as hashes do."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *there]:
            if there.get(key) != here.get(key):
                return f"{key} = {there.get(key)}", str(here.get(key))
    spelled = f"= {there!r}", repr(here)
    return spelled if max(map(len, spelled)) < 80 and not _is_hash(here) else None


def _is_hash(value: Any) -> bool:
    return (
        isinstance(value, str) and len(value) == 32 and all(letter in "0123456789abcdef" for letter in value)
    )


def _rename(aside: Path, path: Path) -> None:
    """Put a file in its place once it is on the disk."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
