"""Models by name: alias, hub id, local folder or earlier run; saved as folders that transformers loads.

Weights are safetensors only and no code of a model repository ever runs.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dgpo_cli.core.protocol import DEFAULT, Protocol
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import ModelError
from dgpo_cli.models import published_prompt
from dgpo_cli.models.aliases import ALIASES, expects_search_r1_prompt

PROTOCOL_FILE = "protocol.json"
transformers_logging.disable_progress_bar()  # a bar per file read says nothing, and stderr belongs to our own progress
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a name leads: `location` is a folder or a hub id."""

    name: str
    location: str
    local: bool


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    protocol: Protocol
    source: ModelSource
    trained_with_protocol: bool  # False: a raw model, to which any agent text is as good


def resolve(name: str, runs_root: Path = Path("runs")) -> ModelSource:
    """Alias, folder, run (its best weights) or hub id. Raises ModelError that names the nearest known names."""
    if name in ALIASES:
        return ModelSource(name, ALIASES[name].repo, local=False)
    for folder in (Path(name), runs_root / name):
        if (folder / "best" / "config.json").is_file():
            return ModelSource(name, str(folder / "best"), local=True)
        if (folder / "config.json").is_file():
            return ModelSource(name, str(folder), local=True)
        if (folder / "run.json").is_file():
            raise ModelError(f"the run {folder} has no weights yet", hint="let it finish its first evaluation")
    if Path(name).exists() or name.startswith((".", "/", "~")):
        raise ModelError(f"{name} is not a model folder (no config.json)", hint="give a folder that holds a model, or a run")
    if name.count("/") == 1:
        return ModelSource(name, name, local=False)
    near = difflib.get_close_matches(name, [*ALIASES, *(p.name for p in runs_root.glob("*"))], n=3)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise ModelError(f"unknown model {name!r}", hint=f"{suggestion}`dgpo models` lists names; folders and hub ids work too")


def load_tokenizer(name: str | ModelSource) -> PreTrainedTokenizerBase:
    source = resolve(name) if isinstance(name, str) else name
    tokenizer: PreTrainedTokenizerBase = _from_hub(source, lambda: AutoTokenizer.from_pretrained(source.location))
    return tokenizer


def load_config(name: str | ModelSource) -> Any:
    source = resolve(name) if isinstance(name, str) else name
    return _from_hub(source, lambda: AutoConfig.from_pretrained(source.location))


def load_model(
    name: str | ModelSource, *, device: torch.device, dtype: torch.dtype = torch.float32, eight_bit: bool = False
) -> LoadedModel:
    """Model in evaluation mode with tokenizer and protocol. Raises ModelError when anything cannot be had or is damaged.

    `eight_bit` keeps linear layers in bitsandbytes' 8-bit form (Dettmers et al. 2022); such a model is never trained.
    """
    source = resolve(name) if isinstance(name, str) else name
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if eight_bit:
        from dgpo_cli.models.eight_bit import quantization

        options |= {"quantization_config": quantization(), "device_map": {"": device}}
    model = _from_hub(source, lambda: AutoModelForCausalLM.from_pretrained(source.location, **options))
    if not eight_bit:
        model = model.to(device)
    protocol, own = load_protocol(source)
    return LoadedModel(model.eval(), load_tokenizer(source), protocol, source, own)


def load_protocol(source: ModelSource) -> tuple[Protocol, bool]:
    """The agent text recorded with a model, and whether the model was trained with it."""
    if source.local:
        file = Path(source.location) / PROTOCOL_FILE
        if not file.is_file():
            return DEFAULT, False
        try:
            return Protocol.from_json(json.loads(file.read_text(encoding="utf-8"))), True
        except (ValueError, OSError) as error:
            raise ModelError(f"{file} is damaged: {error}", hint="export the model again with `dgpo export`") from error
    if expects_search_r1_prompt(source.location):
        return published_prompt.search_r1_protocol(), True
    return DEFAULT, False


def save_model(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: Protocol
) -> None:
    """A folder with safetensors, tokenizer, generation config and protocol; replaced as a whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.writing")
    if temporary.exists():
        shutil.rmtree(temporary)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    write_atomic(temporary / PROTOCOL_FILE, json.dumps(protocol.to_json(), indent=1) + "\n")
    old = directory.with_name(f".{directory.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if directory.exists():
        os.rename(directory, old)
    os.rename(temporary, directory)
    if old.exists():
        shutil.rmtree(old)


def require_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """A teacher scores the student's token ids, so both must map the same ids. Raises ModelError with the first difference."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sorted(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    first = differing[0]
    raise ModelError(
        f"student and teacher have different tokenizers ({len(differing)} tokens differ, first {first!r}: "
        f"id {ours.get(first)} and {theirs.get(first)})",
        hint="choose both from one model family, e.g. qwen-0.5b and qwen-3b",
    )


def _from_hub(source: ModelSource, load: Callable[[], T]) -> T:
    """Run a loader of transformers and turn what can go wrong into one line."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return load()
    except GatedRepoError as error:
        raise ModelError(
            f"{source.location} is gated", hint="accept its licence on its hub page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {source.location!r}", hint="check the name; `dgpo models` lists aliases") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{source.location} is damaged: {error}", hint="download or export the model again") from error
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        if source.local:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{source.location} cannot be loaded: {reason}", hint="download or export the model again") from error
        if isinstance(error, OSError | HfHubHTTPError):
            raise ModelError(
                f"{source.location} is not cached and the hub cannot be reached",
                hint="connect once, or give a local folder: --model FOLDER (see `dgpo doctor`)",
            ) from error
        raise
