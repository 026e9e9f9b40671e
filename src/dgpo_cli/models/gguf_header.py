"""The header of a GGUF file, read with every length checked against the file's.

The form is llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The library that dequantizes
believes what a header says, so a file is checked here first: a header that promises more than the file holds, or a
model of other sizes than its tensors, would make it reserve memory or loop until it is killed.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dgpo_cli.errors import ModelError

MAGIC = b"GGUF"
ARCHITECTURES = ("llama", "qwen2", "qwen3")
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES = 1 << 20  # ours, elements of an array, keys, or tensors; the largest vocabularies have a quarter of it
_MAX_DIMENSIONS = 4
_LISTS = {"tokenizer.ggml.tokens": str, "tokenizer.ggml.merges": str, "tokenizer.ggml.token_type": int}
# Weights in a block, and its bytes, by number of the form of storage.
_FORMS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
}  # fmt: skip
_WHOLE = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Tensor:
    shape: tuple[int, ...]  # the inner dimension first, as the file has it
    form: str
    offset: int
    size: int  # bytes

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    @property
    def sizes(self) -> dict[str, Any]:
        """Keys of the architecture: block_count, attention.head_count and so on."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}

    @property
    def weights(self) -> int:
        return sum(tensor.weights for tensor in self.tensors.values())

    @property
    def form(self) -> str:
        """The form that most weights are stored in, such as Q4_1."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.form] += tensor.weights
        return counts.most_common(1)[0][0]

    @property
    def quantized(self) -> bool:
        return any(tensor.form not in _WHOLE for tensor in self.tensors.values())


class _Torn(Exception):
    """The file ends too early, or holds an impossible value; the message names the place."""


class _Reader:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.size = stream, size

    def take(self, count: int) -> bytes:
        if count > self.size - self._stream.tell():
            raise _Torn(f"it says that {count:,} more bytes follow byte {self._stream.tell():,} of {self.size:,}")
        return self._stream.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, what: str, least: int) -> int:
        """A number of things of at least `least` bytes each."""
        count = int(self.number("<Q"))
        if count > min(_MAX_ENTRIES, (self.size - self._stream.tell()) // least):
            raise _Torn(f"it says that it holds {count:,} {what}")
        return count

    def text(self) -> str:
        return self.take(int(self.number("<Q"))).decode("utf-8")

    def value(self, kind: int, *, inner: bool = False) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and not inner:
            of = self.number("<I")
            least = struct.calcsize(_SCALARS[of]) if of in _SCALARS else 8
            count = self.count("entries of a list", least)
            if of in _SCALARS:
                return [*struct.unpack(f"<{count}{_SCALARS[of][1]}", self.take(count * least))]
            return [self.value(of, inner=True) for _ in range(count)]
        raise _Torn(f"a value of kind {kind}")

    @property
    def place(self) -> int:
        return self._stream.tell()


def read_header(path: Path) -> Header:
    """Raises ModelError for a file that is no GGUF, is cut off, or is no model that can be read here."""
    try:
        with open(path, "rb") as stream:
            reader = _Reader(stream, path.stat().st_size)
            if reader.size < len(MAGIC) or reader.take(4) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file", hint="give a GGUF file, or a folder that holds a model")
            header = _read(reader)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}", hint="give a readable GGUF file") from error
    except (_Torn, UnicodeDecodeError, struct.error) as error:
        raise ModelError(f"{path} is damaged or cut off: {error}", hint="download it again") from error
    _require_model(path, header)
    return header


def _read(reader: _Reader) -> Header:
    version = reader.number("<I")
    if version not in _VERSIONS:
        raise _Torn(f"it is of version {version}; {' and '.join(map(str, _VERSIONS))} are read")
    num_tensors = reader.count("tensors", 24)
    num_keys = reader.count("keys", 13)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.text()
        if key in metadata:
            raise _Torn(f"the key {key!r} occurs twice")
        metadata[key] = reader.value(reader.number("<I"))
    tensors: dict[str, Tensor] = {}
    for _ in range(num_tensors):
        name, tensor = _tensor(reader)
        if name in tensors:
            raise _Torn(f"the tensor {name!r} occurs twice")
        tensors[name] = tensor
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Torn(f"an alignment of {alignment!r}")
    start = -(-reader.place // alignment) * alignment
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        # One after the other: tensors that share bytes would be a small file that fills any memory.
        if tensor.offset < end:
            raise _Torn(f"the tensor {name!r} begins before the one in front of it ends")
        end = tensor.offset + tensor.size
    if start + end > reader.size:
        raise _Torn(f"its tensors end at byte {start + end:,} of {reader.size:,}")
    return Header(metadata, tensors)


def _tensor(reader: _Reader) -> tuple[str, Tensor]:
    name = reader.text()
    dimensions = reader.number("<I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _Torn(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(int(reader.number("<Q")) for _ in range(dimensions))
    kind = reader.number("<I")
    if kind not in _FORMS:
        raise _Torn(f"the tensor {name!r} is stored in form {kind}, which is not read here")
    form, block, size = _FORMS[kind]
    if shape[0] % block or 0 in shape:
        raise _Torn(f"the tensor {name!r} has shape {shape}, in blocks of {block}")
    return name, Tensor(shape, form, int(reader.number("<Q")), math.prod(shape) // block * size)


def _require_model(path: Path, header: Header) -> None:
    """Check that the stated sizes are those of the tensors, and that no part of the model is lost in reading."""
    architecture = header.architecture
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path} holds a model of architecture {architecture!r}",
            hint=f"GGUF files of these are read: {', '.join(ARCHITECTURES)}",
        )
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors or scaling != "none":
        raise ModelError(
            f"{path} scales its rotary embeddings, which a GGUF file does not state in full",
            hint="take the same model as safetensors, from the hub or a folder",
        )
    for name, kind in _LISTS.items():
        values = header.metadata.get(name, [])
        if not isinstance(values, list) or not set(map(type, values)) <= {kind}:
            raise ModelError(f"{path} is damaged: {name} is no list of {kind.__name__}", hint="download it again")
    wanted = _expected(path, header)
    for name, shape in wanted.items():
        found = header.tensors.get(name)
        if found is None or found.shape != shape:
            state = "lacks" if found is None else f"has shape {found.shape}, not {shape}, of"
            raise ModelError(f"{path} {state} the tensor {name!r}", hint="download or convert it again")


def _expected(path: Path, header: Header) -> dict[str, tuple[int, ...]]:
    """Tensors that a model of the sizes named has; their number is at most that of the tensors that are there."""

    def size(key: str, default: int | None = None) -> int:
        value = header.metadata.get(f"{header.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise ModelError(
                f"{path} is damaged: {header.architecture}.{key} = {value!r}", hint="download or convert it again"
            )
        return value

    layers, hidden, inner = size("block_count"), size("embedding_length"), size("feed_forward_length")
    heads = size("attention.head_count")
    shared = size("attention.head_count_kv", heads)
    width = size("attention.key_length", max(1, hidden // heads))
    if layers > len(header.tensors):
        raise ModelError(
            f"{path} names {layers:,} layers and holds {len(header.tensors):,} tensors", hint="download it again"
        )
    vocabulary = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    wanted: dict[str, tuple[int, ...]] = {"token_embd.weight": (hidden, vocabulary), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "attn_q": (hidden, heads * width),
            "attn_k": (hidden, shared * width),
            "attn_v": (hidden, shared * width),
            "attn_output": (heads * width, hidden),
            "ffn_norm": (hidden,),
            "ffn_gate": (hidden, inner),
            "ffn_up": (hidden, inner),
            "ffn_down": (inner, hidden),
        }
        wanted |= {f"blk.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return wanted
