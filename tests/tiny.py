"""Small models and tokenizers that tests make for themselves."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dgpo_cli.formats.tags import DEFAULT, TAGS

WORDS = "the river town of Vesapo lies in the north; who wrote the book? I should search for it. answer search think"

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # of Qwen2, simplified


def bpe_tokenizer(vocab_size: int = 420, *, chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tags are several tokens, as in the tokenizers of published models."""
    tokenizer = Tokenizer(models.BPE())
    # GPT-2's own split would never let a token hold both `>` and a line end; Qwen's does.
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    # Closing tags followed by a line end teach merges that reach over the tag's end.
    texts = [WORDS, DEFAULT.prompt, DEFAULT.correction, *(f"{tag}\n\n{tag} x" for tag in TAGS.markers)]
    tokenizer.train_from_iterator(texts * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if chat:
        fast.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    return fast


def qwen(
    vocab_size: int, seed: int = 0, *, hidden: int = 32, layers: int = 2, positions: int = 512, tied: bool = True
) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config).eval()
