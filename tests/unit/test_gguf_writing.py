"""`dgpo export --gguf`: the file holds the model, its tokens and its agent text, and what it cannot hold is refused."""

import json
from itertools import pairwise

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import ModelError
from dgpo_cli.evaluation.measured import weights_digest
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models import gguf, gguf_tokenizer, gguf_writing
from dgpo_cli.models.gguf_header import read_header
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.offline.world.tokenizer import build_tokenizer
from tiny import WORDS, bpe_tokenizer

pytest.importorskip("gguf")

CPU = torch.device("cpu")
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TEXTS = ["It's 1,024 \u00e9l\u00e8ves  and\n\n\n x", "<search> \u6771\u4eac</search><|im_end|>\tY'all", WORDS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_cache", lambda digest: tmp_path / "cache" / digest[:16])
    gguf._folder_of.cache_clear()


def model_of(kind, vocabulary, *, width=32, heads=4, inner=160, **changes):
    config, model = KINDS[kind]
    torch.manual_seed(0)
    given = {
        "vocab_size": vocabulary, "hidden_size": 128, "intermediate_size": inner, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": 2, "head_dim": width, "max_position_embeddings": 256,
        "initializer_range": 0.2, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    }  # fmt: skip
    return model(config(**(given | changes))).eval()


def saved(folder, kind="qwen2", **changes):
    """A model folder; its vocabulary is padded by three rows, as those of published models are."""
    tokenizer = build_tokenizer()
    model = model_of(kind, len(tokenizer) + 3, **changes)
    save_model(folder / "model", model, tokenizer, TINYWORLD)
    return model, tokenizer


IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_the_file_holds_the_model_its_tokens_and_its_agent_text(dgpo, folder, kind, tied):
    width = 128 if kind == "qwen3" else 32  # of Qwen3 transformers reads no other from such a file
    model, tokenizer = saved(folder, kind, tie_word_embeddings=tied, width=width)
    ended = dgpo("export", "model", "agent", "--gguf", "--json")
    assert ended.status == 0, ended.err
    file = json.loads(ended.out)["file"]
    assert file == "agent/agent-f32.gguf"
    read = load_model(file, device=CPU)
    assert torch.equal(read.model(IDS).logits, model(IDS).logits)
    assert (read.protocol, read.trained_with_protocol) == (TINYWORLD, True)
    for text in TEXTS:
        assert read.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert read.tokenizer.eos_token == tokenizer.eos_token
    kinds = read_header(folder / file).metadata["tokenizer.ggml.token_type"]
    assert [kinds[tokenizer.get_vocab()[token]] for token in ("<|endoftext|>", "<search>", "a")] == [3, 4, 1]
    assert kinds[-3:] == [5, 5, 5]


@pytest.mark.parametrize("rule", gguf_tokenizer.RULES)
def test_a_tokenizer_comes_back_under_the_name_of_its_rule(rule):
    backend = Tokenizer(models.BPE(ignore_merges=rule == "llama-bpe"))
    backend.pre_tokenizer, backend.decoder = gguf_tokenizer._rule(rule), decoders.ByteLevel()
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_end|>", "<|begin_of_text|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator([*TEXTS, WORDS] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|begin_of_text|>", pad_token="<|endoftext|>"
    )
    told = gguf_tokenizer.metadata_of(tokenizer, len(tokenizer), {0, 1})
    assert (told["pre"], told["eos_token_id"], told["eot_token_id"], told["add_bos_token"]) == (rule, 1, 0, False)
    again = gguf_tokenizer.build({f"tokenizer.ggml.{name}": value for name, value in told.items()}, "x.gguf")
    for text in TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids
    assert (again.eos_token, again.bos_token, again.pad_token) == ("<|im_end|>", "<|begin_of_text|>", "<|endoftext|>")


def test_eight_bits_keep_half_a_step_and_short_rows_sixteen_bits(dgpo, folder):
    model, _ = saved(folder, inner=100)
    result = json.loads(dgpo("export", "model", "agent", "--gguf", "--quantize", "q8_0", "--json").out)
    assert (result["dtype"], result["file"]) == ("q8_0", "agent/agent-q8_0.gguf")
    forms = {name: tensor.form for name, tensor in read_header(folder / result["file"]).tensors.items()}
    assert forms["blk.0.ffn_up.weight"] == "Q8_0" and forms["blk.0.ffn_down.weight"] == "F16"
    assert forms["blk.0.attn_norm.weight"] == forms["blk.1.attn_q.bias"] == "F32"
    read = load_model(result["file"], device=CPU).model
    exact, ours = (m.model.layers[1].mlp.up_proj.weight.detach() for m in (model, read))
    step = exact.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    assert (exact - ours).abs().max() > 0
    assert bool(((exact - ours).reshape(-1, 32).abs() <= 0.57 * step).all())


@pytest.mark.parametrize(("dtype", "form"), [("float16", "f16"), ("bfloat16", "bf16"), ("float32", "f32")])
def test_matrices_are_stored_as_asked(dgpo, folder, dtype, form):
    model, _ = saved(folder)
    result = json.loads(dgpo("export", "model", "agent", "--gguf", "--dtype", dtype, "--json").out)
    assert result["file"] == f"agent/agent-{form}.gguf"
    read = load_model(result["file"], device=CPU).model
    wanted = model.lm_head.weight.to(getattr(torch, dtype)).float()
    assert torch.equal(read.lm_head.weight, wanted)


def test_a_number_that_sixteen_bits_cannot_hold_is_refused(dgpo, folder):
    tokenizer = build_tokenizer()
    model = model_of("qwen2", len(tokenizer))
    model.lm_head.weight.data[3, 5] = 1e5
    save_model(folder / "model", model, tokenizer, TINYWORLD)
    ended = dgpo("export", "model", "agent", "--gguf", "--dtype", "float16")
    assert ended.status == 1 and "output.weight holds numbers that f16 cannot hold" in ended.errors[0]
    assert not (folder / "agent").exists()
    assert dgpo("export", "model", "agent", "--gguf", "--dtype", "bfloat16").status == 0


def test_llama_threes_rotary_embeddings_are_told_as_factors(dgpo, folder):
    """Factor 8: the slowest dimensions turn at an eighth, the fastest as before, those between in between."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    saved(folder, "llama", rope_parameters=rope)
    assert dgpo("export", "model", "agent", "--gguf").status == 0
    from gguf import GGUFReader

    found = {tensor.name: tensor.data for tensor in GGUFReader(folder / "agent/agent-f32.gguf").tensors}
    factors = found["rope_freqs.weight"].tolist()
    assert len(factors) == 16 and factors[0] == 1.0 and factors[-1] == pytest.approx(8.0)
    assert all(a <= b + 1e-6 for a, b in pairwise(factors)) and any(1.01 < factor < 7.99 for factor in factors)
    # Dimension 3 turns once in 2 pi * 5e5^(3/16) = 73.6 tokens: 64 / 73.6 is below 1, so it is scaled in full.
    assert factors[3] == pytest.approx(8.0)
    saved(folder / "other", "qwen2", rope_parameters=rope)
    refused = dgpo("export", "other/model", "agent2", "--gguf")
    assert refused.status == 1 and "scales its rotary embeddings" in refused.errors[0]


def test_the_folder_says_how_it_is_run(dgpo, folder):
    saved(folder)
    loaded = load_model("model", device=CPU)
    values = {"n": 9, "em": 0.5, "em_interval": {"low": 0.4, "high": 0.6}, "f1": 0.5}
    report = {
        "model": {"weights": weights_digest(loaded)},
        "complete": True,
        "decoding": {"temperature": 0.0},
        "benchmarks": {"nq": values | {"index": {"retriever": "bm25", "passages": 10}}},
    }
    with RunDir.open("eval", {}) as run:
        (run.path / "report.json").write_text(json.dumps(report))
        run.finish({})
    assert dgpo("export", "model", "agent", "--gguf").status == 0
    assert dgpo("export", "model", "agent8", "--gguf", "--quantize", "q8_0").status == 0
    assert dgpo("export", "model", "half", "--dtype", "bfloat16").status == 0
    names = {path.name for path in (folder / "agent").iterdir()}
    assert names >= {"agent-f32.gguf", "Modelfile", "README.md", "protocol.json", "tokenizer.json", "config.json"}
    assert not any(name.endswith(".safetensors") for name in names)
    lines = (folder / "agent/Modelfile").read_text().splitlines()
    assert "FROM ./agent-f32.gguf" in lines and 'TEMPLATE """{{ .Prompt }}"""' in lines
    assert {line for line in lines if "stop" in line} == {
        'PARAMETER stop "</search>"',
        'PARAMETER stop "</answer>"',
        'PARAMETER stop "<|endoftext|>"',
    }
    cards = {name: (folder / name / "README.md").read_text() for name in ("agent", "agent8", "half")}
    assert "llama-server -m agent-f32.gguf" in cards["agent"] and "```python" not in cards["agent"]
    # What was measured are the weights as they were: a file that rounds them says so and claims no result.
    assert ModelCard(cards["agent"]).data.eval_results[0].metric_value == 0.5 and "rounded" not in cards["agent"]
    for name, form in (("agent8", "q8_0"), ("half", "bf16")):
        assert ModelCard(cards[name]).data.eval_results is None
        assert f"| nq | 9 | 50.0 % | 40.0-60.0 % | 50.0 % | greedy, bm25 over 10 passages |\n\nMeasured before the weights were rounded to {form}." in cards[name]  # fmt: skip  # noqa: E501
    ended = dgpo("chat", "--model", "agent", "--index", str(folder))
    assert ended.status == 1
    with pytest.raises(ModelError, match="weights of agent are in agent-f32"):
        load_model("agent", device=CPU)


def test_what_llama_cpp_would_compute_otherwise_is_refused(dgpo, folder):
    tokenizer = build_tokenizer()
    made = {
        "window": model_of("qwen2", len(tokenizer), use_sliding_window=True, sliding_window=8, max_window_layers=0),
        "gelu": model_of("llama", len(tokenizer), hidden_act="gelu"),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)),
    }
    for name, model in made.items():
        save_model(folder / name, model, tokenizer, TINYWORLD)
    other = bpe_tokenizer()
    save_model(folder / "split", model_of("qwen2", len(other)), other, TINYWORLD)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "<|endoftext|>": 2}, unk_token="[UNK]"))
    wordwise = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>", unk_token="[UNK]")
    save_model(folder / "words", model_of("qwen2", 3), wordwise, TINYWORLD)
    for argv, says in [
        (("window", "agent", "--gguf"), "sliding window"),
        (("gelu", "agent", "--gguf"), "'gelu' in the place of silu"),
        (("gpt2", "agent", "--gguf"), "architecture 'gpt2'; llama, qwen2, qwen3 can be written"),
        (("split", "agent", "--gguf"), "by a rule that llama.cpp has no name for"),
        (("words", "agent", "--gguf"), "kind WordLevel cannot be written"),
        (("split", "agent", "--quantize", "q8_0"), "--quantize belongs to --gguf"),
        (("split", "agent", "--gguf", "--quantize", "q3"), "unknown form 'q3'"),
        (("split", "agent", "--gguf", "--quantize", "q8_0", "--dtype", "float16"), "two forms"),
    ]:
        ended = dgpo("export", *argv)
        assert ended.status == 1 and len(ended.errors) == 1 and says in ended.err, (argv, ended.err)
        assert not (folder / "agent").exists()


def test_a_files_agent_text_is_data(tmp_path, monkeypatch):
    """A text that is no protocol is refused in one line, and nothing that it names is imported."""
    from gguf import GGUFWriter

    model, tokenizer = saved(tmp_path)
    add, texts = GGUFWriter.add_string, {}
    monkeypatch.setattr(GGUFWriter, "add_string", lambda self, key, value: add(self, key, texts.get(key, value)))
    protocol = TINYWORLD.to_json()
    for text, says in [
        ("[1]", "not an object"),
        ("{", "not JSON"),
        (json.dumps(protocol | {"format": "os:path"}), "os:path"),
        (json.dumps(protocol | {"prompt": "no hole"}), "must hold {question} exactly once"),
    ]:
        texts[gguf.PROTOCOL_KEY] = text
        gguf_writing.write(tmp_path / "m.gguf", model, tokenizer, TINYWORLD, form="f32", about={})
        gguf._folder_of.cache_clear()
        with pytest.raises(ModelError, match=r"m\.gguf") as raised:
            load_model(str(tmp_path / "m.gguf"), device=CPU)
        assert says in raised.value.message and "\n" not in raised.value.message
