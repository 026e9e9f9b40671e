"""Tokenizers that come with a model: what their library raises, panics included, is one line that names the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.errors import ModelError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer, save_model
from dgpo_cli.models.tokenizer_errors import tokenizer_errors
from dgpo_cli.models.tokenizer_file import tokenizer_file
from tiny import bpe_tokenizer, qwen


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sound") / "model"
    tokenizer = bpe_tokenizer()
    save_model(folder, qwen(len(tokenizer)), tokenizer, DEFAULT)
    return folder


def _spoil(sound: Path, folder: Path, file: str, changes: dict[str, Any]) -> str:
    shutil.copytree(sound, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))
    return str(folder)


ADDED = [
    {"a": {"content": "x"}}, {"5000": {}}, [], {"5000": "x"}, {"5000": {"content": "x", "lstrip": "no"}},
    {"5000": {"content": 5}}, None,
]  # fmt: skip


@pytest.mark.parametrize("added", ADDED, ids=range(len(ADDED)))
def test_odd_added_tokens(sound: Path, tmp_path: Path, added: Any) -> None:
    name = _spoil(sound, tmp_path / "m", "tokenizer_config.json", {"added_tokens_decoder": added})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is damaged|has a tokenizer that cannot be used") as e:
        tokenizer_file(name)
    assert str(tmp_path / "m") in e.value.message and "\n" not in e.value.message


@pytest.mark.parametrize("file", ["special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"])
def test_half_of_a_surrogate_pair_is_no_text(sound: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(sound, tmp_path / "m")
    (tmp_path / "m" / file).write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(ModelError, match=f"{file} is damaged: not UTF-8"):
        load_tokenizer(str(tmp_path / "m"))


PANICS: dict[str, dict[str, Any]] = {
    "empty pattern": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
    "regex without end": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    },
}


@pytest.mark.parametrize("load", [tokenizer_file, load_tokenizer])
@pytest.mark.parametrize("kind", PANICS)
def test_a_panic_is_one_line(sound: Path, tmp_path: Path, kind: str, load: Callable[[str], Any]) -> None:
    codec = Codec(load(_spoil(sound, tmp_path / "m", "tokenizer.json", PANICS[kind])), DEFAULT)
    with pytest.raises(ModelError, match="has a tokenizer that cannot be used"):
        codec.text_ids("Who? " + "a" * 5000 + "b")


@pytest.mark.parametrize("load", [tokenizer_file, load_tokenizer])
def test_ids_full_of_holes_are_refused(sound: Path, tmp_path: Path, load: Callable[[str], Any]) -> None:
    """Saving such a tokenizer takes minutes that nothing interrupts: its library looks at every id."""
    model = json.loads((sound / "tokenizer.json").read_text())["model"]
    spoiled = model | {"vocab": model["vocab"] | {"a": 10**9}}
    with pytest.raises(ModelError, match=r"has a token with the id 1,000,000,000, 16,777,216 at most"):
        load(_spoil(sound, tmp_path / "m", "tokenizer.json", {"model": spoiled}))


@pytest.mark.parametrize("load", [tokenizer_file, load_tokenizer])
def test_text_that_a_tokenizer_puts_in_front_is_bounded(
    sound: Path, tmp_path: Path, load: Callable[[str], Any]
) -> None:
    long = {"normalizer": {"type": "Prepend", "prepend": "e" * 10**7}}
    with pytest.raises(ModelError, match=r"a normalizer of 10,0\d\d,\d\d\d characters, 1,048,576 at most"):
        load(_spoil(sound, tmp_path / "long", "tokenizer.json", long))
    shorter = {"normalizer": {"type": "Replace", "pattern": {"String": "o"}, "content": "ox" * 500}}
    codec = Codec(load(_spoil(sound, tmp_path / "shorter", "tokenizer.json", shorter)), DEFAULT)
    with pytest.raises(ModelError, match=r"makes [\d,]+ tokens of 6 bytes of text"):
        codec.text_ids("Who so")


def test_interrupts_and_errors_of_the_system_stay_what_they_are() -> None:
    for error in (KeyboardInterrupt(), MemoryError(), OSError(24, "Too many open files"), ModelError("x")):
        with pytest.raises(type(error)) as raised, tokenizer_errors("m"):
            raise error
        assert raised.value is error
