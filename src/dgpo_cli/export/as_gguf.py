"""A trained model as one GGUF file for llama.cpp and what is built on it, with what a host needs beside it."""

from __future__ import annotations

import json
from pathlib import Path

from dgpo_cli.core.hub import quiet_loading
from dgpo_cli.core.records import write_atomic
from dgpo_cli.export.request import FORMS
from dgpo_cli.models import gguf_writing
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import LoadedModel, write_text_side


def write_folder(
    folder: Path, name: str, loaded: LoadedModel, form: str | None, *, base: str | None, licence: str | None
) -> Path:
    """The file, a Modelfile for ollama, and tokenizer, configuration and agent text for `--model`; returns the file.

    `base` is the hub's id of the model that training began from.
    """
    form = form or FORMS[str(loaded.model.dtype).removeprefix("torch.")]
    file = folder / f"{name}-{form}.gguf"
    about = {"name": name, "license": licence, "source.huggingface.repository": base}
    gguf_writing.write(
        file,
        loaded.model,
        loaded.tokenizer,
        loaded.protocol,
        form=form,
        about={key: value for key, value in about.items() if value is not None},
    )
    with quiet_loading():
        loaded.model.config.save_pretrained(folder)
    write_text_side(folder, loaded.tokenizer, loaded.protocol)
    write_atomic(folder / "Modelfile", modelfile(file.name, loaded))
    return file


def modelfile(file: str, loaded: LoadedModel) -> str:
    """For `ollama create`. The prompt passes through as it is sent: whoever searches renders the chat template too."""
    codec, protocol = Codec(loaded.tokenizer, loaded.protocol), loaded.protocol
    ends = [str(loaded.tokenizer.convert_ids_to_tokens(place)) for place in sorted(codec.eos_ids)]
    context = min(protocol.max_tokens or 4096, loaded.model.config.max_position_embeddings)
    settings = {"temperature": "0", "repeat_penalty": "1", "num_ctx": str(context)}
    stops = [json.dumps(stop, ensure_ascii=False) for stop in (*codec.format.stops, *ends)]
    return "\n".join(
        [
            "# ollama create NAME -f Modelfile",
            "# The prompt goes to the model as it is sent, since a turn that ends with a search needs a program that",
            "# searches and goes on: dgpo chat --model THIS_FOLDER --model-url http://127.0.0.1:11434/v1",
            f"FROM ./{file}",
            'TEMPLATE """{{ .Prompt }}"""',
            *(f"PARAMETER {name} {value}" for name, value in settings.items()),
            *(f"PARAMETER stop {stop}" for stop in stops),
            "",
        ]
    )
