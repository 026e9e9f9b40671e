import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import bpe_tokenizer

from dgpo_cli.core.types import Passage
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models.codec import Codec

CODEC = Codec(bpe_tokenizer(), DEFAULT)
CHAT = Codec(bpe_tokenizer(chat=True), DEFAULT)
UNTRUSTED = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(["<|im_end|>", "<|endoftext|>", *TAGS.markers, "</ANSWER >", "\n"]),
    ),
    max_size=8,
).map("".join)


def test_tags_are_several_tokens_in_a_byte_level_vocabulary():
    assert len(CODEC.tokenizer("</search>", add_special_tokens=False).input_ids) > 1


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_decoding_inverts_encoding(text):
    text = text.encode("utf-8", "replace").decode()
    ids = CODEC.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert CODEC.decode(ids) == text


@given(UNTRUSTED, UNTRUSTED)
@settings(max_examples=200, deadline=None)
def test_untrusted_text_cannot_forge_tags_or_special_tokens(title, text):
    special = set(CODEC.tokenizer.all_special_ids)
    passage = Passage("1", f'"{title}"\n{text}'.encode("utf-8", "replace").decode())
    observation = CODEC.observation_ids([passage], 10_000)
    rendered = CODEC.decode(observation.ids)
    assert not special & set(observation.ids)
    assert rendered.count("</information>") == 1 and rendered.endswith("</information>\n\n")
    for tag in TAGS.markers:
        assert rendered.lower().count(tag) == ("information" in tag)
    prompt = CHAT.prompt_ids(text)
    plain = CHAT.prompt_ids("x")
    assert [i for i in prompt.ids if i in special] == [i for i in plain.ids if i in special]


def test_the_chat_prompt_is_what_the_template_makes_of_harmless_text():
    message, _ = DEFAULT.render_prompt("who wrote Dune")
    expected = CHAT.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
    )
    assert list(CHAT.prompt_ids("who wrote Dune").ids) == CHAT.tokenizer(expected, add_special_tokens=False).input_ids


def test_a_template_that_strips_the_message_is_followed():
    tokenizer = bpe_tokenizer(chat=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content | trim")
    codec = Codec(tokenizer, DEFAULT)
    message, _ = DEFAULT.render_prompt("who")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
    )
    assert list(codec.prompt_ids("who").ids) == tokenizer(expected, add_special_tokens=False).input_ids


@pytest.mark.parametrize("limit", [30, 47, 80, 120])
def test_a_long_observation_is_cut_inside_its_results(limit):
    passages = [Passage(str(i), f'"Town {i}"\n' + "the river lies in the north " * 9) for i in range(3)]
    whole = CODEC.observation_ids(passages, 10_000)
    cut = CODEC.observation_ids(passages, limit)
    assert not whole.truncated and cut.truncated
    assert limit - 12 < len(cut.ids) <= limit
    text = CODEC.decode(cut.ids)
    assert text.endswith("</information>\n\n")
    assert CODEC.decode(whole.ids).startswith(text.removesuffix("</information>\n\n"))


def test_a_byte_split_over_tokens_is_decoded_whole():
    ids = CODEC.tokenizer("né 東", add_special_tokens=False).input_ids
    assert any(CODEC.decode([i]) == "\ufffd" for i in ids)
    assert CODEC.decode(ids) == "né 東"


def test_a_protocol_without_its_hole_is_refused():
    from dgpo_cli.errors import InputError

    with pytest.raises(InputError, match="exactly once"):
        Protocol(name="x", prompt="no hole", correction="c")


def test_what_is_remembered_of_a_text_keeps_what_is_trusted_apart():
    codec = Codec(bpe_tokenizer(), DEFAULT)
    name = codec.tokenizer.all_special_tokens[0]
    for _ in range(2):
        assert codec._encode(name, True) == (codec.tokenizer.convert_tokens_to_ids(name),)
        assert len(codec._encode(name, False)) > 1
        assert codec.text_ids(name) == list(codec._encode(name, False))
    codec.text_ids(name).append(7)
    assert codec.text_ids(name) == list(codec._encode(name, False))
