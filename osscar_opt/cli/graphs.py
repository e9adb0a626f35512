"""The command that shows what goes together in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from osscar_opt.cli._console import patience, print_json, require_writable, stdout
from osscar_opt.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


_PICTURES = (".png", ".svg", ".pdf")


def require_picture(path: Path | None) -> None:
    """Refuse a name that no picture has, before work goes into it."""
    if path is not None and path.suffix.lower() not in _PICTURES:
        raise InputError(f"cannot draw {path}: end the name in one of {', '.join(_PICTURES)}.")


def graph(
    model: Annotated[
        str, typer.Argument(help="'smollm2', or a folder with a checkpoint.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Draw it to this file: .png, .svg or .pdf.")] = None,
    query_heads: Annotated[
        bool, typer.Option("--query-heads", help="Query heads apart from the keys and values they share.")
    ] = False,
    json: Json = False,
) -> None:
    """Show which parts of a model can be pruned, what goes with them, and what is left alone and why."""
    require_writable(out)
    require_picture(out)
    from osscar_opt.torch.checkpoint import load_pruned
    from osscar_opt.torch.coupling import trace_coupling
    from osscar_opt.torch.example import example_batch
    from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model

    with patience("Loading the model"):
        loaded = load_language_model(model)[0] if model == PACKAGED_MODEL else load_pruned(model)
    coupling = trace_coupling(loaded, example_batch(loaded), query_heads=query_heads)
    if out is not None:
        coupling.plot().figure.savefig(out, dpi=150, bbox_inches="tight")
    if json:
        print_json(_document(coupling))
    else:
        stdout().print(str(coupling), markup=False, soft_wrap=True)


def _document(coupling: Any) -> dict[str, Any]:
    return {
        "model": coupling.model,
        "sites": [
            {
                "name": site.name,
                "kind": site.kind,
                "n": site.n,
                "producers": list(site.producers),
                "consumers": list(site.consumers),
                "default": name in coupling.default_sites(),
                "parameters": [[part.parameter, part.axis] for part in site.slices],
                "blocks": None if site.blocks is None else site.blocks.tolist(),
            }
            for name, site in coupling.sites.items()
        ],
        "left_alone": [
            {
                "producers": list(refusal.producers),
                "consumers": list(refusal.consumers),
                "channels": refusal.channels,
                "why": refusal.why,
            }
            for refusal in coupling.refused
        ],
    }
