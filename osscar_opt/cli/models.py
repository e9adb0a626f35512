"""Commands that need a model: extraction of a layer, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osscar_opt.cli._console import Threads, print_json, progress_bar, require_writable, stdout

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Windows = Annotated[int, typer.Option(min=1, help="Windows of text to calibrate on.")]

_LAYER = "model.layers.0.mlp.down_proj"


def extract(
    model: Annotated[str, typer.Argument(help="'smollm2', or a Hugging Face folder.", show_default=False)],
    layer: Annotated[str, typer.Argument(help=f"Its name in the model: {_LAYER}", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The instance file to write.", show_default=False)],
    keep: Annotated[int | None, typer.Option(help="How many groups may stay.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of the groups that goes.")] = None,
    groups: Annotated[str, typer.Option(help="neurons, heads, or rows per group.")] = "neurons",
    head_dim: Annotated[int | None, typer.Option(help="Rows per head; read from the model.")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Heads; read from the model.")] = None,
    damping: Annotated[float, typer.Option(help="Ridge, relative to the mean diagonal.")] = 1e-2,
    text: Annotated[Path | None, typer.Option(help="Text to calibrate on; packaged news by default.")] = None,
    windows: Windows = 32,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a window.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows run at once.")] = 4,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write the pruning problem of one layer of a language model to an instance file."""
    require_writable(out)
    from osscar_opt.torch.extract_file import extract_to_file

    with progress_bar("Calibrating") as progress:
        problem = extract_to_file(
            model,
            layer,
            out,
            text=text,
            windows=windows,
            length=length,
            batch_size=batch_size,
            keep=keep,
            sparsity=sparsity,
            damping=damping,
            groups=int(groups) if groups.isdigit() else groups,
            head_dim=head_dim,
            num_heads=num_heads,
            progress=progress,
        )
    if json:
        sizes = {"p": problem.p, "q": problem.q, "n": problem.n, "keep": problem.keep}
        print_json({"file": str(out), **sizes, "hash": problem.hash, "provenance": problem.provenance})
    else:
        console = stdout()
        console.print(problem.describe(), markup=False)
        console.print(f"written to:        {out}", markup=False)


def demo(
    layer: Annotated[str, typer.Option(help="The layer to prune.")] = _LAYER,
    keep_fraction: Annotated[float, typer.Option(help="Share of its inputs that stays.")] = 0.5,
    windows: Windows = 32,
    held_out_windows: Annotated[int, typer.Option(min=1, help="Windows to measure perplexity on.")] = 16,
    time_limit: Annotated[float, typer.Option(help="Seconds for each method.")] = 30.0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Prune a layer of a real language model by every method, and measure its perplexity."""
    from osscar_opt.bench.demo import run_demo

    run_demo(
        layer=layer,
        keep_fraction=keep_fraction,
        windows=windows,
        held_out_windows=held_out_windows,
        time_limit=time_limit,
        json=json,
    )
