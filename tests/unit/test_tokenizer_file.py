"""A tokenizer read without transformers makes what transformers makes of it."""

import json

import pytest

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ModelError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer, save_model
from dgpo_cli.models.shapes import shape_from, shape_of
from dgpo_cli.models.tokenizer_file import require_same_tokenizer, tokenizer_file
from tiny import bpe_tokenizer, qwen

TEXTS = ["Who wrote <|im_end|> it?", " two  blanks ", "", "Straße <search> x </search>\n\n日本"]


@pytest.mark.parametrize("chat", [False, True])
def test_it_makes_the_ids_of_transformers(tmp_path, chat):
    tokenizer = bpe_tokenizer(chat=chat)
    tokenizer.add_tokens(["<extra>"])
    save_model(tmp_path / "m", qwen(len(tokenizer)), tokenizer, DEFAULT)
    theirs, ours = load_tokenizer(str(tmp_path / "m")), tokenizer_file(str(tmp_path / "m"))
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    require_same_tokenizer(ours, theirs)
    one, other = Codec(ours, DEFAULT), Codec(theirs, DEFAULT)
    assert (one.digest, one.eos_ids, one.pad_id) == (other.digest, other.eos_ids, other.pad_id)
    for text in TEXTS:
        assert one.prompt_ids(text) == other.prompt_ids(text)
        passage = [Passage("1", f"T\n{text}")]
        assert one.observation_ids(passage, 40) == other.observation_ids(passage, 40)
        assert one.decode(one.text_ids(text)) == other.decode(other.text_ids(text))


def test_what_is_missing_or_damaged_is_one_line(tmp_path):
    tokenizer = bpe_tokenizer()
    save_model(tmp_path / "m", qwen(len(tokenizer)), tokenizer, DEFAULT)
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        tokenizer_file(str(tmp_path / "m"))
    file.unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        tokenizer_file(str(tmp_path / "m"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_local_model_has_the_size_of_its_configuration(tmp_path, tied):
    tokenizer = bpe_tokenizer()
    model = qwen(len(tokenizer), tied=tied)
    save_model(tmp_path / "m", model, tokenizer, DEFAULT)
    assert shape_of(str(tmp_path / "m")).parameters == sum(p.numel() for p in model.parameters())


def test_heads_may_be_wider_than_their_share_of_the_hidden_state(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16)  # fmt: skip
    shape = shape_from("x", json.loads(config.to_json_string(use_diff=False)))
    assert shape.parameters == sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    assert (shape.query_width, shape.kv_width) == (64, 32)


@pytest.mark.parametrize("bad", [None, 0, -1, "8", True, 1.5])
def test_a_configuration_without_sizes_is_refused(bad):
    good = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    with pytest.raises(ModelError, match=r"config\.json has no usable num_hidden_layers"):
        shape_from("x", good | {"num_hidden_layers": bad})
