"""A chat template that fails, never ends, writes too much or the wrong thing is one error line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dgpo_cli.errors import ModelError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models import chat_template
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer
from dgpo_cli.models.tokenizer_file import tokenizer_file
from tiny import bpe_tokenizer

SAY = "{{ messages[0]['content'] }}"
BAD = {
    "raises": "{{ raise_exception('no system message') }}",
    "syntax": "{% for %}",
    "twice": SAY + SAY,
    "never": "hello",
    "undefined": "{{ nothing.at.all }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + SAY,
    "long": "{{ 'a' * 10000000 }}" + SAY,
    "huge": "{{ 'a' * 100000000000 }}" + SAY,
    "doubling": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    + SAY,
    "power": "{{ 9 ** (9 ** 9) }}" + SAY,
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}" + SAY,
    "copies": "{% set x = 'a' * 900000 %}{% set x = ([x] * 90) | join %}{% for i in range(99999) %}{% if x ~ 'b' %}"
    "{% endif %}{% endfor %}" + SAY,
    "rounded": "{{ 1 | round(100000000, 'ceil') }}" + SAY,
    "wide": "{{ '%.99999999f' % 1.5 }}" + SAY,
    "wide filter": "{{ '%0*d' | format(99999999, 1) }}" + SAY,
    "addresses": "{{ ('http://' ~ '(' * 300000) | urlize }}" + SAY,
    "index": "{{ messages[99]['content'] }}",
    "deep": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}" + SAY,
    "private": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
}


@pytest.mark.parametrize("kind", ["transformers", "file"])
@pytest.mark.parametrize("name", BAD)
def test_a_template_that_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "copies":  # few steps, each of them long
        monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.3)
    bpe_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(BAD[name])
    (tmp_path / "config.json").write_text("{}")
    before = sys.gettrace()
    with pytest.raises(ModelError, match=r"^the tokenizer's chat template ") as raised:
        tokenizer = (load_tokenizer if kind == "transformers" else tokenizer_file)(str(tmp_path))
        Codec(tokenizer, DEFAULT).prompt_ids("Where?")
    assert "\n" not in raised.value.message and len(raised.value.message) < 400 and raised.value.hint
    assert sys.gettrace() is before


@pytest.mark.parametrize("kind", ["transformers", "file"])
@pytest.mark.parametrize("template", [[{"name": "tool_use", "template": SAY}], [{"name": "x"}], 7])
def test_templates_without_a_default_are_one_line(tmp_path: Path, template: object, kind: str) -> None:
    bpe_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    with pytest.raises(ModelError):
        tokenizer = (load_tokenizer if kind == "transformers" else tokenizer_file)(str(tmp_path))
        Codec(tokenizer, DEFAULT).prompt_ids("Where?")


@pytest.mark.parametrize("kind", ["transformers", "file"])
def test_a_template_that_loops_within_reason_is_used(tmp_path: Path, kind: str) -> None:
    bpe_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{% for i in range(9999) %}{% endfor %}<" + SAY + ">")
    tokenizer = (load_tokenizer if kind == "transformers" else tokenizer_file)(str(tmp_path))
    codec = Codec(tokenizer, DEFAULT)
    assert codec.decode(codec.prompt_ids("Where?").ids).startswith("<You answer")
