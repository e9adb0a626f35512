"""The command that prunes a whole language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from osscar_opt.cli._console import Threads, patience, print_json, stdout

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def prune(
    model: Annotated[str, typer.Argument(help="'smollm2', or a Hugging Face folder.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A folder to write the pruned model to.", show_default=False)],
    sparsity: Annotated[float | None, typer.Option(help="Share of each site's units that goes.")] = None,
    keep: Annotated[int | None, typer.Option(help="How many units of each site stay.")] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="ffn, heads, or a pattern of names; may be repeated. All by default."),
    ] = None,
    multiple: Annotated[int, typer.Option(min=1, help="Round what stays up to a multiple of this.")] = 1,
    method: Annotated[
        str,
        typer.Option("--method", "-m", help="See `osscar-opt solvers`; also taylor, nvit, chip, fpgm, ..."),
    ] = "osscar",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Of the method: name=value; may be repeated.")
    ] = None,
    order: Annotated[
        Literal["sequential", "parallel"],
        typer.Option(help="One site after another, or all from the dense model."),
    ] = "sequential",
    targets: Annotated[
        Literal["student", "teacher"],
        typer.Option(help="Sequential: imitate the layer on its new inputs, or the dense model's outputs."),
    ] = "student",
    apply: Annotated[
        Literal["shrink", "mask"], typer.Option(help="Remove units, or write zeros.")
    ] = "shrink",
    damping: Annotated[float, typer.Option(help="Ridge, relative to the mean diagonal.")] = 1e-2,
    text: Annotated[Path | None, typer.Option(help="Text to calibrate on; packaged news by default.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of text to calibrate on.")] = 64,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a window.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows run at once.")] = 4,
    folder: Annotated[
        Path | None, typer.Option(help="Work folder: a killed run goes on from it when called again.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where blocks are run, one at a time: cuda, say.")
    ] = None,
    gap: Annotated[bool, typer.Option("--gap", help="Compute a lower bound for every site.")] = False,
    time_limit: Annotated[float | None, typer.Option(help="Seconds for each site's solution.")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Prune a language model: choose units, refit the layers that read them, save a smaller checkpoint."""
    from osscar_opt.cli._options import parse_options
    from osscar_opt.errors import InputError
    from osscar_opt.torch.checkpoint import refuse_occupied, save_pruned
    from osscar_opt.torch.extract_file import calibration_batches, load_language_model
    from osscar_opt.torch.prune import prune_model
    from osscar_opt.torch.scores import MODEL_RULES

    if (sparsity is None) == (keep is None):
        raise InputError("give either --sparsity, the share of units that goes, or --keep, how many stay.")
    refuse_occupied(out)
    rule = MODEL_RULES.get(method)
    options = parse_options(
        method if rule is None else rule.method, option or (), given=() if rule is None else (rule.option,)
    )
    with patience("Loading the model"):
        loaded, tokenizer, name = load_language_model(model)
        batches, text_name = calibration_batches(
            tokenizer, text, windows=windows, length=length, batch_size=batch_size
        )
    report = prune_model(
        loaded,
        [{"input_ids": batch} for batch in batches],
        sparsity=sparsity,
        keep=keep,
        multiple=multiple,
        method=method,
        options=options,
        sites=sites or None,
        order=order,
        targets=targets,
        damping=damping,
        apply=apply,
        gap=gap,
        time_limit=time_limit,
        folder=folder,
        device=device,
    )
    plain = save_pruned(loaded, out, report=report, tokenizer=tokenizer)
    if json:
        calibration = {"text": text_name, "windows": windows, "length": length}
        named = {"model": name, "out": str(out), "plain_checkpoint": plain, "calibration": calibration}
        print_json({**named, **report.to_dict()})
    else:
        console = stdout()
        console.print(report.table(), markup=False, soft_wrap=True)
        loader = "transformers" if plain else "osscar_opt.torch.load_pruned"
        console.print(f"written to: {out} (load it with {loader})", markup=False, soft_wrap=True)
