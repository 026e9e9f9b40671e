"""A very small sentence encoder with random weights, over the words of a small corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tests.retrieval_corpora import TOWNS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from dgpo_cli.core.types import Passage


def words_of(passages: Iterable[Passage]) -> list[str]:
    return sorted({word for p in passages for word in p.contents.lower().replace('"', " ").replace(".", " . ").split()})


WORDS = words_of(TOWNS)


def make_encoder(folder: Path, seed: int = 0, words: Sequence[str] = WORDS) -> Path:
    torch.manual_seed(seed)
    known = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage", ":", *words])
    vocabulary = {word: place for place, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_cross_encoder(folder: Path, seed: int = 0, labels: int = 1, words: Sequence[str] = WORDS) -> Path:
    """Reads a pair of texts and gives `labels` scores."""
    make_encoder(folder, words=words)
    torch.manual_seed(seed)
    config = BertConfig.from_pretrained(folder, num_labels=labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
