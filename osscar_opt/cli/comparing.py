"""The command that sets all rules side by side on one problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osscar_opt.cli._console import Threads, patience, print_json, require_writable, stdout
from osscar_opt.cli.graphs import require_picture
from osscar_opt.cli.solving import Json, Keep, Sparsity, limited, read_instance
from osscar_opt.errors import InputError

if TYPE_CHECKING:
    from osscar_opt.bench.comparison import Comparison


_PACKAGED = ("smollm2", "mobilenet_v2", "efficientnet_lite0")


def compare(
    source: Annotated[
        str,
        typer.Argument(
            help="An instance file or name; with --layer a model: 'smollm2', 'mobilenet_v2', or a folder.",
            show_default=False,
        ),
    ],
    layer: Annotated[
        str | None, typer.Option(help="The layer of the model that is pruned: model.layers.5.mlp.down_proj")
    ] = None,
    keep: Keep = None,
    sparsity: Sparsity = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", "-r", help="Only this one; may be repeated. All that apply by default."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Branch and bound too, for a lower bound.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for each rule.")] = 20.0,
    out: Annotated[Path | None, typer.Option(help="Draw it to this file: .png, .svg or .pdf.")] = None,
    damping: Annotated[
        float | None,
        typer.Option(help="With --layer: ridge, relative to the mean diagonal; 0.01 by default."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With a language model: text to calibrate on; packaged news by default."),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="With a language model: windows of 512 tokens; 16 by default.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run every rule that applies to a problem, as published and refitted: errors, what they keep, time, a picture.

    Rules that need gradients, feature maps or filters join in where the model and a layer are given.
    """
    require_writable(out)
    require_picture(out)
    if layer is None:
        _refuse_what_models_take({"--text": text, "--windows": windows, "--damping": damping})
        found = _of_instance(Path(source), keep, sparsity, rule, exact, time_limit)
    else:
        found = _of_layer(
            source,
            layer,
            keep,
            sparsity,
            rule,
            exact,
            time_limit,
            damping=1e-2 if damping is None else damping,
            text=text,
            windows=windows or 16,
        )
    if out is not None:
        found.plot().figure.savefig(out, dpi=150, bbox_inches="tight")
    if json:
        print_json(
            {
                "source": source,
                "layer": layer,
                "picture": None if out is None else str(out),
                **found.to_dict(),
            }
        )
    else:
        stdout().print(found.table(), markup=False, soft_wrap=True)


def _of_instance(
    file: Path,
    keep: int | None,
    sparsity: float | None,
    rules: list[str] | None,
    exact: bool,
    time_limit: float,
) -> Comparison:
    from osscar_opt.bench.compare import compare as compared

    if file.is_dir() or str(file) in _PACKAGED:
        raise InputError(f"{file} is a model: say which layer, as --layer model.layers.5.mlp.down_proj.")
    problem = limited(read_instance(file), keep, sparsity)
    if not problem.limits.names:
        raise InputError(f"{file} has no limit on what may stay: give --keep or --sparsity.")
    return compared(problem, rules=rules or None, exact=exact, time_limit=time_limit)


def _refuse_what_models_take(given: dict[str, object]) -> None:
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise InputError(f"{named[0]} goes with --layer and a model: an instance holds its own data.")


def _of_layer(
    source: str,
    layer: str,
    keep: int | None,
    sparsity: float | None,
    rules: list[str] | None,
    exact: bool,
    time_limit: float,
    *,
    damping: float,
    text: Path | None,
    windows: int,
) -> Comparison:
    from osscar_opt.bench.compare import compare_layer

    if (keep is None) == (sparsity is None):
        raise InputError("give either --sparsity, the share of units that goes, or --keep, how many stay.")
    with patience("Loading the model"):
        model, batches = _model(source, text, windows)
    return compare_layer(
        model,
        layer,
        batches,
        sparsity=sparsity,
        keep=keep,
        damping=damping,
        rules=rules or None,
        exact=exact,
        time_limit=time_limit,
    )


def _model(source: str, text: Path | None, windows: int) -> tuple[Any, list[Any]]:
    """A model and its calibration batches."""
    from osscar_opt.torch.packaged.networks import NETWORKS, Batches
    from osscar_opt.torch.packaged.pictures import calibration_pictures

    if source in NETWORKS:
        network = NETWORKS[source]
        return network.load(), list(Batches(calibration_pictures(views=1), network))
    from osscar_opt.torch.extract_file import calibration_batches, load_language_model

    model, tokenizer, _ = load_language_model(source)
    tokens, _ = calibration_batches(tokenizer, text, windows=windows, length=512, batch_size=4)
    return model, [{"input_ids": batch} for batch in tokens]
