"""Models as GGUF files (llama.cpp's form), read by transformers once and kept as a folder like any other model.

Quantized weights are written out as float32: training starts from the values in the file, with their rounding. The
folder lies among the hub library's cached assets under the hash of the file's contents, so that HF_HOME moves it and
another file of the same name is another model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dgpo_cli.core import folders, schema
from dgpo_cli.core.extras import require
from dgpo_cli.core.hub import quiet_loading
from dgpo_cli.core.locks import Lock
from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import DgpoError, InputError, ModelError, first_line
from dgpo_cli.formats.protocol import PROTOCOL_FILE, Protocol
from dgpo_cli.models.gguf_header import MAGIC, Header, read_header

RECORD_FILE = "gguf.json"
SUFFIX = ".gguf"
PROTOCOL_KEY = "dgpo.protocol"  # the agent text of a file that `gguf_writing` made
_BYTES_PER_WEIGHT = 4  # float32
_WAIT_S = 600.0  # for another process that reads the same file
_FORM = 1  # version of the folders; raised whenever this program writes them differently


def is_gguf(path: Path) -> bool:
    """Whether a path is meant as, or is, a GGUF file."""
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        return True
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def folder_of(path: Path) -> Path:
    """The folder that holds the file's model, made if it is not there. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist", hint="give a GGUF file, a folder that holds a model, or a run")
    state = path.stat()
    return _folder_of(path.resolve(), state.st_size, state.st_mtime_ns)


def packaged(package: str) -> Path | None:
    """The one GGUF file of an installed package; None without the package. Nothing of it is imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    files = sorted(Path(found.submodule_search_locations[0]).glob(f"*{SUFFIX}"))
    return files[0] if len(files) == 1 else None


_RECORD = schema.record(
    dict.fromkeys(("name", "file", "sha256", "architecture", "form"), schema.text())
    | {"weights": schema.whole(0), "quantized": schema.FLAG},
    dict.fromkeys(("licence", "repository"), schema.maybe(schema.text())),
)


def record_of(folder: Path) -> dict[str, Any] | None:
    """The origin of a model that was read from a GGUF file: name, architecture, form, file, sha256, licence."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return None
    found: dict[str, Any] = schema.read_record(file, _RECORD, hint=f"delete {folder}", error=ModelError)
    return found


def described(record: Mapping[str, Any]) -> str:
    """One phrase that names the model and its form of storage."""
    form = f"quantized to {record['form']}" if record["quantized"] else f"stored as {record['form']}"
    return f"{record['name']} ({record['architecture']}, {record['weights'] / 1e6:,.0f}M weights, {form})"


@lru_cache(64)
def _folder_of(path: Path, _size: int, _changed: int) -> Path:
    """The folder of a file; size and time of change only identify a state of it."""
    header = read_header(path)
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = _cache(digest)
    if (folder / RECORD_FILE).is_file():
        return folder
    with Lock.beside(folder, hint="give the command again when it is done", wait_s=_WAIT_S):
        folders.settle(folder)
        if not (folder / RECORD_FILE).is_file():
            require("gguf", "gguf", "a GGUF file", ModelError)
            _require_space(folder.parent, header)
            with folders.replacing(folder) as fresh:
                _write(path, header, fresh, digest)
    return folder


def _cache(digest: str) -> Path:
    from huggingface_hub import cached_assets_path

    parent = Path(cached_assets_path("dgpo", namespace="gguf", subfolder=f"form-{_FORM}"))
    return parent / digest[:16]


def _require_space(parent: Path, header: Header) -> None:
    from dgpo_cli.core.disk import check_space

    parent.mkdir(parents=True, exist_ok=True)
    check_space(parent, header.weights * _BYTES_PER_WEIGHT)


def _write(path: Path, header: Header, folder: Path, digest: str) -> None:
    """Weights, tokenizer, template and generation config of `path`, and the record last. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from dgpo_cli.models import gguf_tokenizer

    try:
        tokenizer = gguf_tokenizer.build(header.metadata, path)
        # The progress bar of this one function has no switch.
        with quiet_loading(), contextlib.redirect_stderr(io.StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            model, report = loaded
            if report["missing_keys"] or report["mismatched_keys"]:
                first = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[0]
                raise ModelError(f"{path} lacks weights of its own configuration, first {first}", hint="convert again")
            # transformers does not save a model that says it is quantized; these weights are no longer.
            del model.config.quantization_config
            model.hf_quantizer, model.is_quantized = None, False
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            GenerationConfig(
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False
            ).save_pretrained(folder)
        if PROTOCOL_KEY in header.metadata:
            protocol = Protocol.from_json(parse_json(header.metadata[PROTOCOL_KEY], PROTOCOL_KEY))
            write_atomic(folder / PROTOCOL_FILE, json.dumps(protocol.to_json(), indent=1, ensure_ascii=False) + "\n")
    except InputError as error:
        raise ModelError(f"the agent text of {path}: {error.message}", hint="export it again") from error
    except DgpoError:
        raise
    except Exception as error:  # the libraries raise errors of many kinds for a file that is not what it says
        pass_on(error)
        reason = first_line(error)
        raise ModelError(f"{path} cannot be read: {reason}", hint="download or convert it again") from error
    write_atomic(folder / RECORD_FILE, json.dumps(_record(path, header, digest), indent=1, ensure_ascii=False) + "\n")


def _record(path: Path, header: Header, digest: str) -> dict[str, Any]:
    text = {key: value for key, value in header.metadata.items() if isinstance(value, str)}
    return {
        "name": path.stem,
        "file": path.name,
        "sha256": digest,
        "bytes": path.stat().st_size,
        "architecture": header.architecture,
        "weights": header.weights,
        "form": header.form,
        "quantized": header.quantized,
        "licence": text.get("general.license"),
        "repository": text.get("general.source.huggingface.repository"),
    }
