"""`dgpo export`: a trained model as a folder that others can load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.commands.common.next_steps import after_export
from dgpo_cli.commands.common.options import JsonFlag, QuietFlag
from dgpo_cli.console import Console


def export(
    run: Annotated[str, typer.Argument(help="A run (its best weights), e.g. rl-0003; or any model name.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to the hub as well.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: make a repository that everyone can see.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as the weights are saved by default.")
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Weights as one GGUF file, for llama.cpp and what is built on it.")
    ] = False,
    quantize: Annotated[str | None, typer.Option(help="q8_0: with --gguf, weights in 8 bit.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model folder that is already there.")
    ] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a model as a folder that transformers and vLLM load, with tokenizer, agent text and a model card.

    Examples: `dgpo export rl-0003 my-agent` · `dgpo export rl-0003 my-agent --dtype bfloat16 --push me/my-agent` ·
    `dgpo export rl-0003 my-agent --gguf --quantize q8_0`
    """
    from dgpo_cli.errors import ConfigError
    from dgpo_cli.export.request import check_push, claimed, form_of
    from dgpo_cli.models.sources import resolve

    console = Console(json_output=json, quiet=quiet)
    if public and push is None:
        raise ConfigError("--public belongs to --push", hint="dgpo export RUN DIR --push OWNER/NAME --public")
    if quantize is not None and not gguf:
        raise ConfigError("--quantize belongs to --gguf", hint="dgpo export RUN DIR --gguf --quantize q8_0")
    with claimed(directory, overwrite=overwrite):
        form_of(dtype, quantize)
        resolve(run)
        if push is not None:
            check_push(push)
        from dgpo_cli.export import export as pipeline  # after the checks: it imports libraries that compute

        console.info(f"reading {run}")
        result = pipeline.export(run, directory, dtype=dtype, as_gguf=gguf, quantize=quantize)
    size = f"{result['parameters']:,} parameters as {result['dtype']}, {result['bytes'] / 1e6:,.1f} MB"
    console.print(f"{directory}: {size}")
    if push is not None:
        console.info(f"pushing to {push}")
        result |= {"url": pipeline.push(directory, push, public=public)}
        console.print(f"pushed: {result['url']}{'' if public else ' (a repository made for it is private)'}")
    console.next(*after_export(Path(result.get("file", directory))))
    console.result(result)
