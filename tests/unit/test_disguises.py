"""Tags in disguise are text: in a passage, a title or a question they are shown as `&lt;...`, and counted."""

from __future__ import annotations

import re
import time
import unicodedata

import pytest

from dgpo_cli.core.disguises import OPENING, look_alike
from dgpo_cli.core.types import Passage
from dgpo_cli.formats.tags import DEFAULT, TAGS

DISGUISES = {
    "full width": "\uff1canswer\uff1e",
    "full width letters": "<" + "".join(chr(ord(c) + 0xFEE0) for c in "answer") + ">",
    "small": "\ufe64answer\ufe65",
    "zero width inside": "<ans\u200bwer>",
    "zero width in front": "<\u2060search>",
    "soft hyphen": "<an\u00adswer>",
    "byte order mark": "<\ufeff/answer>",
    "joiner at the slash": "</\u200danswer>",
    "selector": "<a\ufe0fnswer>",
    "bidi": "<\u202eanswer>",
    "nul": "<\x00answer>",
    "mark over a letter": "<se\u0338arch>",
    "Cyrillic": "<\u0430nswer>",
    "more Cyrillic": "<s\u0435\u0430r\u0441h>",
    "Greek": "<inf\u03bfrmation>",
    "bold": "<" + "".join(chr(0x1D41A + ord(c) - ord("a")) for c in "search") + ">",
    "circled": "<\u24d0nswer>",
    "digit": "<th1nk>",
    "long s": "<\u017fearch>",
    "Kelvin": "<thin\u212a>",
    "mixed case": "<aNsWeR>",
    "blanks": "< / answer >",
    "attribute": "<answer\nx=1>",
    "no end": "</information",
    "full width slash": "<\uff0fanswer>",
}


@pytest.mark.parametrize("kind", DISGUISES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_disguised_tag_is_escaped_and_counted(kind: str, form: str) -> None:
    tag = unicodedata.normalize(form, DISGUISES[kind])  # type: ignore[arg-type]
    escaped, count = TAGS.escape(f"so {tag} evil")
    assert (count, escaped) == (1, f"so &lt;{tag[1:]} evil")
    assert TAGS.escape(escaped) == (escaped, 0)
    shown, count = DEFAULT.render_observation([Passage("1", f'"{tag}"\n{tag}')])
    inside = shown.removeprefix("\n\n<information>").removesuffix("</information>\n\n")
    assert count == 2 and TAGS.escape(inside) == (inside, 0)


@pytest.mark.parametrize(
    "text",
    ["a < answers", "x<thinking", "<information_theory>", "&lt;answer>", "< 3 searches", "<b>answer</b>", "a<b, c>d",
     "<ans wer>", "\u2039answer\u203a", "<answe>", "</s>", "<|im_end|>"],
)  # fmt: skip
def test_what_is_no_tag_stays(text: str) -> None:
    assert TAGS.escape(text) == (text, 0)


def test_names_with_signs_are_names() -> None:
    assert look_alike(["tool_call"]).findall("<tool_call> <t\u043eol_\u200bcall> <tool.call>") == ["<", "<"]
    assert set("<\ufe64\uff1c") == {c for c in map(chr, range(0x10000)) if re.match(OPENING, c)}


@pytest.mark.parametrize("piece", ["<", "< ", "<a\u200b", "\u200b", "<\u200b", "<answe", " ", "<\x00"])
def test_no_page_costs_more_than_another(piece: str) -> None:
    pattern = look_alike(TAGS.names)

    def seconds(size: int) -> float:
        text = "<" + piece * (size // len(piece))
        began = time.process_time()
        pattern.subn("&lt;", text)
        return time.process_time() - began

    least = min(seconds(400_000) for _ in range(3))
    assert least < 0.1 or least < 8 * min(seconds(100_000) for _ in range(3))
