"""Models by name: alias, hub id, local folder, GGUF file or earlier run; saved as folders that transformers loads.

Weights are safetensors only and no code of a model repository ever runs. A weight that is missing or of another shape
is an error here, where transformers would draw it at random.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

from dgpo_cli.core import checksums, folders, schema
from dgpo_cli.core.device import Precision
from dgpo_cli.core.hub import quiet_loading, without_pickle
from dgpo_cli.core.machine_faults import require_openable
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.protocol import PROTOCOL_FILE, Protocol
from dgpo_cli.models import hub
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.half import compute_in_half, pays_off
from dgpo_cli.models.load_errors import explain
from dgpo_cli.models.lora import has_adapter, merged_parameters
from dgpo_cli.models.sources import ModelSource, config_values, load_protocol, resolve
from dgpo_cli.models.tokenizer_errors import require_light, tokenizer_errors
from dgpo_cli.models.tokenizer_file import require_sound_texts

KEPT_TOKENIZER = "tokenizer"  # folder of a run


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    protocol: Protocol
    source: ModelSource
    trained_with_protocol: bool  # False: a raw model, for which any agent text is as good

    @property
    def raw(self) -> str | None:
        """A line about a model that was never trained to search, and what makes it search."""
        return None if self.trained_with_protocol else untrained(self.source.name)


def untrained(name: str) -> str:
    """A line about a model without an agent text of its own, and what makes it search."""
    return (
        f"{name} was never trained to search: expect turns without an action; "
        "`dgpo distill-data --teacher gold` and then `dgpo kd --method seqkd` make it search"
    )


def load_tokenizer(name: str | ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer exactly as tokenizer.json describes it: AutoTokenizer would put the model type's own rules for
    splitting and normalizing text in the place of those that the model was trained with.
    """
    source = resolve(name) if isinstance(name, str) else name
    options = _options(source)
    require_sound_texts(source)
    with tokenizer_errors(source.location), _explained(source):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source.location, **options)
    require_light(tokenizer.backend_tokenizer, source.location)
    return cast(PreTrainedTokenizerBase, tokenizer)


def keep_tokenizer(run: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A copy in the run's folder: its records hold token ids, and the model may be gone when they are read."""
    if not (run / KEPT_TOKENIZER).is_dir():
        with folders.replacing(run / KEPT_TOKENIZER) as folder:
            tokenizer.save_pretrained(folder)


def kept_tokenizer(run: Path) -> PreTrainedTokenizerBase | None:
    folder = run / KEPT_TOKENIZER
    return load_tokenizer(ModelSource(str(folder), str(folder), local=True)) if folder.is_dir() else None


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
    precision: Precision = "float32",
    form: str | None = None,
) -> LoadedModel:
    """Model in evaluation mode with tokenizer and protocol; `dtype` None keeps the one it was saved in.

    `precision` "auto" computes with float32 weights in bf16 where that pays off on a CPU; on CUDA it is always so.

    `eight_bit` keeps linear layers in bitsandbytes' 8-bit form (Dettmers et al. 2022); such a model is never trained.
    `form` is the format of a model that was trained with none.
    Raises ModelError when a part is missing, is damaged, or does not fit the others.
    """
    source = resolve(name) if isinstance(name, str) else name
    protocol, own = load_protocol(source, form)
    _require_readable(source, device)
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
    _require_unchanged(source)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ModelError(
            f"{source.location}: the tokenizer has {len(tokenizer)} tokens, the model knows {rows}",
            hint="model and tokenizer are not from one training; download or export them together",
        )
    if model.dtype == torch.float32 and pays_off(device, model.config, precision):
        compute_in_half(model)
    return LoadedModel(model.eval(), tokenizer, protocol, source, own)


_SHARDS = "model.safetensors.index.json"
_INDEX = schema.record(
    {"metadata": schema.map_of(schema.ANYTHING), "weight_map": schema.map_of(schema.text(empty=False), least=1)}
)


def _require_readable(source: ModelSource, device: torch.device) -> None:
    """Check a folder: its shards lie in it, and its weights were saved in the form they are computed with."""
    folder = Path(source.location)
    if not source.local:
        return
    require_openable(folder)
    elsewhere = [] if any(folder.glob("*.safetensors")) else sorted(folder.glob("*.gguf"))
    if elsewhere:
        file = elsewhere[0]
        raise ModelError(f"the weights of {folder} are in {file.name}", hint=f"give {file}, or --model-url")
    hint = "download or export the model again"
    if (folder / _SHARDS).is_file():
        index = schema.read_record(folder / _SHARDS, _INDEX, hint=hint, error=ModelError)
        for name in sorted(set(index["weight_map"].values())):
            named = Path(name).name == name and name.endswith(".safetensors")
            if not named or not (folder / name).is_file():
                state = "is missing" if named else "is no safetensors file in it"
                raise ModelError(f"{folder / _SHARDS}: the shard {name!r} {state}", hint=hint)
    values = config_values(source) or {}
    if device.type == "cpu" and values.get("quantization_config") is not None:
        raise ModelError(
            f"{source.location} was saved in a quantized form, which is not computed with on a CPU",
            hint="take the model that it was made from, or a GGUF file of it",
        )


def _require_complete(source: ModelSource, report: dict[str, Any]) -> None:
    broken = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if broken:
        raise ModelError(
            f"{source.location} lacks {len(broken)} weights of its own configuration, first {broken[0]}",
            hint="download or export the model again",
        )


def _require_unchanged(source: ModelSource) -> None:
    """Check that weights which this program wrote are unchanged."""
    if source.local and (fault := checksums.fault_beside(Path(source.location))):
        raise ModelError(
            f"{source.location}: {fault}",
            hint=f"take another copy, or train it again; if it was changed on purpose, delete {checksums.FILE} there",
        )


def save_model(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
    """A folder with safetensors, tokenizer, generation config and protocol; replaced as a whole."""
    with folders.replacing(directory) as folder:
        write_model(folder, model, tokenizer, protocol)


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
    with quiet_loading():
        # state_dict() of a sharded model would shard its weights again, which are whole here.
        weights = merged_parameters(model) if isinstance(model, FSDPModule) or has_adapter(model) else None
        model.save_pretrained(folder, state_dict=weights)
    write_text_side(folder, tokenizer, protocol)
    checksums.write_beside(folder, "*.safetensors")


def write_text_side(folder: Path, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
    """Tokenizer, generation config and protocol."""
    codec = Codec(tokenizer, protocol)
    with quiet_loading():
        tokenizer.save_pretrained(folder)
        # Greedy, and every token that may end a turn: sampling settings of the base model are not the agent's.
        GenerationConfig(
            eos_token_id=sorted(codec.eos_ids), pad_token_id=codec.pad_id, do_sample=False
        ).save_pretrained(folder)
    undated = replace(protocol, date=None)  # the date is that of a run
    write_atomic(folder / PROTOCOL_FILE, json.dumps(undated.to_json(), indent=1, ensure_ascii=False) + "\n")


def _options(source: ModelSource) -> dict[str, Any]:
    """Arguments of every from_pretrained. Raises ModelError if the hub is needed and not there."""
    # Left out, trust_remote_code makes transformers ask the user whether to run the repository's code.
    local_only = source.local or hub.must_be_local(source.location)
    return {"trust_remote_code": False, "local_files_only": local_only}


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn any error in reading foreign files into one line about them."""
    try:
        with quiet_loading(), without_pickle():
            yield
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise explain(error, source.location, local=source.local) from error
