"""The offline world's tokenizer: byte-level BPE over its words and syllables; each of the agent's tags is one token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dgpo_cli.core.protocol import TAG_TOKENS, TINYWORLD
from dgpo_cli.tinyworld.demonstrations import PHRASES
from dgpo_cli.tinyworld.names import SYLLABLES
from dgpo_cli.tinyworld.world import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|end|>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer on every run: it is made from the world's forms, not from its names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000,  # more than there are merges: every word of the forms and every syllable becomes one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    # Not special: a special token would be skipped by decoding and split where untrusted text is encoded.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def _texts() -> Iterator[str]:
    # A syllable alone, at a word's start and after a space: merges never reach over two syllables of a name.
    for syllable in SYLLABLES:
        yield from (syllable, syllable.capitalize(), f" {syllable.capitalize()}") * 400  # far more often than any pair of letters in the forms
    forms = [kind.text.replace("{subject}", "") for kind in KINDS]
    forms += ['Doc 1(Title: "") Born in , studied at .', 'Doc 2(Title: "") Film directed by , starring .']
    forms += ['Doc 3(Title: "") Town in , founded by .', TINYWORLD.correction, *PHRASES]
    for form in forms:
        yield from [form] * 3
