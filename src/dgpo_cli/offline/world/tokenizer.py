"""The offline world's tokenizer: byte-level BPE over the pieces of its names, and one token for every fixed phrase.

Phrases are whole tokens ("Where was the star of ") and so is each of the format's tags, so that an episode has a few
dozen tokens and a tiny model learns to copy names within minutes. Any other text is still encoded, byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dgpo_cli.core.types import Passage
from dgpo_cli.formats.tags import TAGS, TINYWORLD
from dgpo_cli.offline.world.demonstrator import SCRIPT_FORMS
from dgpo_cli.offline.world.names import merges
from dgpo_cli.offline.world.world import FORMS, KINDS, MAX_RESULTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"  # the name that Qwen2 tokenizers have for it: AutoTokenizer adds nothing when it loads this one
_NAME = "\0"  # stands for a name while a form is cut into phrases


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same for every seed: it is made from the world's forms and name pieces, not from its names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {END: 0}
    for token in (*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges())):
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    # Not special: a special token would be skipped by decoding and split where untrusted text is encoded.
    whole = (*TAGS.markers, *phrases())
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in whole])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def phrases() -> list[str]:
    """The text between the names in questions, passages, observations and demonstrations, longest first."""
    found = {piece for form in _forms() for piece in form.split(_NAME) if piece}
    return sorted(found, key=lambda phrase: (-len(phrase), phrase))


def _forms() -> Iterator[str]:
    for kind in KINDS:
        yield TINYWORLD.render_prompt(kind.text.format(subject=_NAME))[0]
    for form in FORMS.values():  # the end of a passage and the start of the next one are one phrase
        yield TAGS.render_results([_blank(form)] * MAX_RESULTS)
    for form in SCRIPT_FORMS:
        yield form.replace("{}", _NAME)


def _blank(form: str) -> Passage:
    return Passage.from_title("", _NAME, re.sub(r"{\w+}", _NAME, form))
