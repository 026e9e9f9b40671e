"""The tokenizer that a GGUF file holds, as the `tokenizers` library builds it, and the other way round.

The file lists tokens and merges and names the rule by which text is split first. The rules are those of the families'
own tokenizer.json files; a rule that is not known is refused, since other splits are other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dgpo_cli.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> Any:
    pattern = Regex(_WORDS.replace("DIGITS", digits))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2(*, single_digits: bool) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if not single_digits:
        return level
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])


RULES = ("gpt-2", "smollm", "qwen2", "llama-bpe")


def _rule(name: str) -> Any:
    if name == "qwen2":
        return _split("")
    if name == "llama-bpe":
        return _split("{1,3}")
    return _gpt2(single_digits=name == "smollm")


def build(metadata: Mapping[str, Any], path: object) -> PreTrainedTokenizerFast:
    """Raises ModelError if the file has no tokenizer of the byte-level kind, or one that contradicts itself."""
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise ModelError(
            f"{path} has a tokenizer of kind {kind!r}; byte-level BPE ('gpt2') is read",
            hint="take a SmolLM2, Qwen or Llama-3 family model",
        )
    if rule not in RULES:
        raise ModelError(
            f"{path} splits text by the rule {rule!r}, which is not known here",
            hint=f"take the model as safetensors; rules that are known: {', '.join(RULES)}",
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens or ())
    merges = metadata.get("tokenizer.ggml.merges")
    pairs = [(first, second) for first, _, second in (str(merge).partition(" ") for merge in merges or ())]
    if not tokens or not pairs or len(kinds) != len(tokens) or len({*tokens}) != len(tokens):
        raise ModelError(f"{path} is damaged: its lists of tokens do not fit together", hint="download it again")
    backend = Tokenizer(
        models.BPE(
            vocab={token: place for place, token in enumerate(tokens)},
            merges=pairs,
            ignore_merges=rule == "llama-bpe",
        )
    )
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _rule(rule)
    backend.decoder = decoders.ByteLevel()
    added = [(place, token) for place, token in enumerate(tokens) if kinds[place] in (_CONTROL, _USER_DEFINED)]
    for place, token in added:
        backend.add_tokens([AddedToken(token, special=kinds[place] == _CONTROL, normalized=False)])
    special = {
        f"{name}_token": tokens[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if isinstance(number := metadata.get(f"tokenizer.ggml.{key}_token_id"), int) and 0 <= number < len(tokens)
    }
    if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    template = metadata.get("tokenizer.chat_template")
    tokenizer.chat_template = template if isinstance(template, str) and template else None
    return tokenizer


_NORMAL, _UNUSED = 1, 5  # further kinds of tokens
_CLOSERS = ("eos", "eot", "eom")  # the keys of tokens that end a text


def metadata_of(tokenizer: PreTrainedTokenizerBase, rows: int, end_ids: Collection[int]) -> dict[str, Any]:
    """The GGUF keys of a tokenizer, without "tokenizer.ggml."; `build` makes the same tokenizer from them.

    `rows` is that of the embedding: ids beyond the tokenizer's become unused tokens. `end_ids` end a text.
    Raises ModelError for a tokenizer that llama.cpp has no rule for.
    """
    parts = _parts(tokenizer.backend_tokenizer)
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    tokens = [f"[PAD{place}]" for place in range(rows)]
    kinds = [_UNUSED] * rows
    for token, place in vocabulary.items():
        kind = _NORMAL if place not in added else _CONTROL if added[place].special else _USER_DEFINED
        tokens[place], kinds[place] = token, kind
    ends = sorted(end_ids, key=lambda place: (place != tokenizer.eos_token_id, place))
    named: dict[str, int | None] = dict(zip(_CLOSERS, ends, strict=False))
    named |= {"bos": tokenizer.bos_token_id, "padding": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    front = tokenizer("", add_special_tokens=True).input_ids
    return {
        "model": "gpt2",
        "pre": _rule_of(parts),
        "tokens": tokens,
        "token_type": kinds,
        "merges": [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]],
        **{f"{name}_token_id": place for name, place in named.items() if place is not None},
        "add_bos_token": bool(front) and front[0] == tokenizer.bos_token_id,
    }


def _parts(backend: Tokenizer) -> dict[str, Any]:
    """What would stand in the tokenizer.json."""
    return dict(json.loads(backend.to_str()))


def _rule_of(parts: Mapping[str, Any]) -> str:
    """The name of the rule by which a tokenizer.json splits text. Raises ModelError if it is none of RULES."""
    model = parts["model"]
    if model["type"] != "BPE" or "ByteLevel" not in str(parts["pre_tokenizer"]) or model.get("byte_fallback"):
        raise ModelError(
            f"a tokenizer of kind {model['type']} cannot be written to a GGUF file; byte-level BPE can",
            hint="export without --gguf: transformers and vLLM load the folder",
        )
    wanted = _splitting(parts)
    for name in RULES:
        backend = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        backend.pre_tokenizer = _rule(name)
        if name == "qwen2":
            backend.normalizer = normalizers.NFC()
        if _splitting(_parts(backend)) == wanted:
            return name
    raise ModelError(
        "the tokenizer splits text by a rule that llama.cpp has no name for",
        hint=f"export without --gguf; rules that can be written: {', '.join(RULES)}",
    )


def _splitting(parts: Mapping[str, Any]) -> Any:
    """The parts of a tokenizer, other than vocabulary and merges, that decide how a text is tokenized."""

    def without_offsets(value: Any) -> Any:
        if isinstance(value, list):
            return [without_offsets(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {key: without_offsets(item) for key, item in value.items() if key != "trim_offsets"}

    model = parts["model"]
    affixes = (model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or "")
    return without_offsets([parts["pre_tokenizer"], parts["normalizer"], bool(model.get("ignore_merges")), affixes])
