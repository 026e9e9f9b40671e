"""Models by name: alias, hub id, local folder, GGUF file or earlier run; saved as folders that transformers loads.

Weights are safetensors only and no code of a model repository ever runs. A weight that is missing or of another shape
is an error here, where transformers would draw it at random.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dgpo_cli.core.hub import quiet_loading
from dgpo_cli.core.protocol import DEFAULT, Protocol
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import InputError, ModelError
from dgpo_cli.models import gguf, hub, published_prompt, storage
from dgpo_cli.models.aliases import ALIASES, expects_search_r1_prompt
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load_errors import explain

PROTOCOL_FILE = "protocol.json"


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
    """Alias, folder, GGUF file, run (its best weights) or hub id. Raises ModelError that names the nearest names.

    A GGUF file is read here, the first time, and leads to the folder that was made of it.
    """
    if name in ALIASES:
        return _of_alias(name)
    given = Path(name).expanduser()
    if gguf.is_gguf(given):
        return ModelSource(name, str(gguf.folder_of(given)), local=True)
    for folder in (given, runs_root / name):
        storage.recover(folder / "best")
        if (folder / "best" / "config.json").is_file():
            return ModelSource(name, str(folder / "best"), local=True)
        if (folder / "config.json").is_file():
            return ModelSource(name, str(folder), local=True)
        if (folder / "run.json").is_file():
            raise ModelError(
                f"the run {folder} has no weights", hint="let it get to its first evaluation; see `dgpo runs`"
            )
    if given.exists() or name.startswith((".", "/", "~")):
        state = "is not a model folder (no config.json)" if given.exists() else "does not exist"
        raise ModelError(f"{name} {state}", hint="give a folder that holds a model, or a run: `dgpo runs` lists them")
    if name.count("/") == 1 and all(name.split("/")):
        return ModelSource(name, name, local=False)
    near = difflib.get_close_matches(name, [*ALIASES, *(p.name for p in runs_root.glob("*"))], n=3)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise ModelError(
        f"unknown model {name!r}", hint=f"{suggestion}`dgpo models` lists names; folders and hub ids work too"
    )


def _of_alias(name: str) -> ModelSource:
    """The hub's model; where the hub cannot be had, the file of the installed package that carries it."""
    alias = ALIASES[name]
    file = None if alias.package is None or hub.is_readable(alias.repo) else gguf.packaged(alias.package)
    if file is not None:
        return ModelSource(name, str(gguf.folder_of(file)), local=True)
    return ModelSource(name, alias.repo, local=False)


def origin(name: str) -> str | None:
    """What a model read from a GGUF file is, as one phrase; None for any other."""
    source = resolve(name)
    record = gguf.record_of(Path(source.location)) if source.local else None
    return None if record is None else gguf.described(record)


def load_tokenizer(name: str | ModelSource) -> PreTrainedTokenizerBase:
    """What tokenizer.json says, to the letter: AutoTokenizer would put the model type's own rules for splitting and
    normalizing text in the place of those that the model was trained with.
    """
    source = resolve(name) if isinstance(name, str) else name
    options = _options(source)
    with _explained(source):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source.location, **options)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_config(name: str | ModelSource) -> Any:
    source = resolve(name) if isinstance(name, str) else name
    options = _options(source)
    with _explained(source):
        return AutoConfig.from_pretrained(source.location, **options)


def load_model(
    name: str | ModelSource,
    *,
    device: torch.device,
    dtype: torch.dtype | None = torch.float32,
    eight_bit: bool = False,
) -> LoadedModel:
    """Model in evaluation mode with tokenizer and protocol; `dtype` None keeps the one it was saved in.

    `eight_bit` keeps linear layers in bitsandbytes' 8-bit form (Dettmers et al. 2022); such a model is never trained.
    Raises ModelError when anything cannot be had, is damaged, or does not fit together.
    """
    source = resolve(name) if isinstance(name, str) else name
    protocol, own = load_protocol(source)
    tokenizer = load_tokenizer(source)
    options = _options(source) | {"dtype": dtype or "auto", "use_safetensors": True}
    if eight_bit:
        from dgpo_cli.models.eight_bit import quantization

        options |= {"quantization_config": quantization()}
    if eight_bit or device.type != "cpu":
        options |= {"device_map": {"": device}}
    with _explained(source):
        # A mismatch is reported below by name; from_pretrained would only say that there is one.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location, **options, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, report = loaded
    _require_complete(source, report)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ModelError(
            f"{source.location}: the tokenizer has {len(tokenizer)} tokens, the model knows {rows}",
            hint="model and tokenizer are not from one training; download or export them together",
        )
    return LoadedModel(model.eval(), tokenizer, protocol, source, own)


def _require_complete(source: ModelSource, report: dict[str, Any]) -> None:
    broken = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if broken:
        raise ModelError(
            f"{source.location} lacks {len(broken)} weights of its own configuration, first {broken[0]}",
            hint="download or export the model again",
        )


def load_protocol(source: ModelSource) -> tuple[Protocol, bool]:
    """The agent text recorded with a model, and whether the model was trained with it."""
    file = _protocol_file(source)
    if file is not None:
        return read_protocol(file), True
    if not source.local and expects_search_r1_prompt(source.location):
        return published_prompt.search_r1_protocol(), True
    return DEFAULT, False


def _protocol_file(source: ModelSource) -> Path | None:
    if source.local:
        beside = Path(source.location) / PROTOCOL_FILE
        return beside if beside.is_file() else None
    fetched = hub.fetch(source.location, PROTOCOL_FILE)
    return None if fetched is None else Path(fetched)


def search_limits(*names: str) -> tuple[dict[str, int], str]:
    """`top_k` and `max_turns` of the first model that records them, and a phrase that says whose they are.

    The paper's where none does. A model of the hub that cannot be read now says nothing here; loading it will.
    """
    for name in names:
        source = resolve(name)
        file = _protocol_file(source) if source.local or hub.is_readable(source.location) else None
        if file is not None:
            protocol = read_protocol(file)
            return {"top_k": protocol.top_k, "max_turns": protocol.max_turns}, f"as {name} was trained"
    return {"top_k": DEFAULT.top_k, "max_turns": DEFAULT.max_turns}, "the paper's"


def context_of(name: str) -> int | None:
    """Positions that a model can read at once; None if its configuration does not say or cannot be read now."""
    source = resolve(name)
    if not (source.local or hub.is_readable(source.location)):
        return None
    return getattr(load_config(source), "max_position_embeddings", None)


def read_protocol(file: Path) -> Protocol:
    try:
        return Protocol.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError, TypeError, AttributeError, InputError) as error:
        raise ModelError(f"{file} is damaged: {error}", hint="export the model again with `dgpo export`") from error


def save_model(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
    """A folder with safetensors, tokenizer, generation config and protocol; replaced as a whole."""
    with storage.replacing(directory) as folder:
        write_model(folder, model, tokenizer, protocol)


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
    codec = Codec(tokenizer, protocol)
    with quiet_loading():
        # Asked for its state a sharded model would give up its weights, which are whole here.
        weights = dict(model.named_parameters()) if isinstance(model, FSDPModule) else None
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        # Greedy, and every token that may end a turn: sampling settings of the base model are not the agent's.
        GenerationConfig(
            eos_token_id=sorted(codec.eos_ids), pad_token_id=codec.pad_id, do_sample=False
        ).save_pretrained(folder)
    write_atomic(folder / PROTOCOL_FILE, json.dumps(protocol.to_json(), indent=1, ensure_ascii=False) + "\n")


def require_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """A teacher scores the student's token ids, so both must read the same ids alike. Raises ModelError otherwise."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    hint = "choose both from one model family, e.g. qwen-0.5b and qwen-3b"
    differing = sorted(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    if differing:
        first = differing[0]
        raise ModelError(
            f"student and teacher have different tokenizers ({len(differing)} tokens differ, first {first!r}: "
            f"id {ours.get(first)} and {theirs.get(first)})",
            hint=hint,
        )
    special, other = ({i: t.special for i, t in x.added_tokens_decoder.items()} for x in (student, teacher))
    for index in sorted(special.keys() | other.keys()):
        if special.get(index, False) != other.get(index, False):
            token = student.convert_ids_to_tokens(index)
            raise ModelError(
                f"token {token!r} is special to one of student and teacher and text to the other", hint=hint
            )


def _options(source: ModelSource) -> dict[str, Any]:
    """Arguments of every from_pretrained. Raises ModelError if the hub is needed and not there."""
    # Left out, trust_remote_code makes transformers ask the user whether to run the repository's code.
    local_only = source.local or hub.must_be_local(source.location)
    return {"trust_remote_code": False, "local_files_only": local_only}


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Whatever goes wrong while foreign files are read becomes one line about them."""
    try:
        with quiet_loading():
            yield
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise explain(error, source.location, local=source.local) from error
