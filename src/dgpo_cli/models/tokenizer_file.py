"""A model's tokenizer without transformers, whose import takes longer than every check before a run.

`TokenizerFile` has the part of `PreTrainedTokenizerFast` that `Codec` and the checks ask for; a test holds that both
make the same ids. Runs themselves use the one of transformers, which can also be saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

from dgpo_cli.core import schema
from dgpo_cli.core.untrusted import read_text
from dgpo_cli.errors import ModelError
from dgpo_cli.models import hub
from dgpo_cli.models.chat_template import HINT
from dgpo_cli.models.sources import ModelSource, resolve
from dgpo_cli.models.tokenizer_errors import require_light, tokenizer_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
_TOKENS = schema.map_of(
    schema.record({"content": schema.text()}, dict.fromkeys(_FLAGS, schema.FLAG), other=schema.ANYTHING)
)
_CONFIG = schema.record({}, {"added_tokens_decoder": _TOKENS}, other=schema.ANYTHING)


class TokenizerVocabulary(Protocol):
    """Both kinds of tokenizer."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...
    def get_vocab(self) -> dict[str, int]: ...
    def convert_ids_to_tokens(self, ids: int) -> str | list[str]: ...


class TokenizerFile:
    """A tokenizer from tokenizer.json, tokenizer_config.json and chat_template.jinja of a model."""

    def __init__(
        self, location: str, backend: Tokenizer, config: Mapping[str, Any], templates: Mapping[str, str]
    ) -> None:
        self.name_or_path, self.backend_tokenizer = location, backend
        self.chat_template, self._templates = templates.get("default"), templates
        self._config = config
        backend.no_truncation()
        backend.no_padding()

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def eos_token(self) -> str | None:
        return _text(self._config.get("eos_token"))

    @property
    def pad_token_id(self) -> int | None:
        pad = _text(self._config.get("pad_token"))
        return None if pad is None else self.backend_tokenizer.token_to_id(pad)

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(i) for i in ids]

    def __call__(self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False) -> Any:
        self.backend_tokenizer.encode_special_tokens = split_special_tokens
        return SimpleNamespace(input_ids=self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        found = ((name, _text(value)) for name, value in self._config.items() if name.endswith("_token"))
        return {name: text for name, text in found if text}

    def get_chat_template(self, *, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Of several templates the one for tools, where there are tools and it, as transformers chooses."""
        template = self._templates.get("tool_use" if tools else "default", self.chat_template)
        assert template is not None
        return template


def tokenizer_file(name: str | ModelSource) -> PreTrainedTokenizerBase:
    """Typed as what it stands in for. Raises ModelError if there is none, or it cannot be read."""
    from tokenizers import AddedToken, Tokenizer

    source = resolve(name) if isinstance(name, str) else name
    path = _file(source, "tokenizer.json")
    if path is None:
        raise ModelError(
            f"{source.location} has no tokenizer.json", hint="add it from the base model, or export the model again"
        )
    config = _json(source, "tokenizer_config.json")
    with tokenizer_errors(str(path), "is damaged"):
        backend = Tokenizer.from_file(str(path))
    require_light(backend, source.location)
    with tokenizer_errors(source.location):
        known = backend.get_added_tokens_decoder()
        tokens = {int(i): t for i, t in config.get("added_tokens_decoder", {}).items() if int(i) not in known}
        for _, token in sorted(tokens.items()):
            flags = {key: token[key] for key in _FLAGS if key in token}
            add = backend.add_special_tokens if token.get("special") else backend.add_tokens
            add([AddedToken(token["content"], **flags)])
    template = config.get("chat_template")
    own = _file(source, "chat_template.jinja")
    if own is not None:
        template = read_text(own, ModelError)
    return cast("PreTrainedTokenizerBase", TokenizerFile(source.location, backend, config, _by_name(template)))


def _by_name(template: object) -> dict[str, str]:
    """Of one template its name is `default`. Raises ModelError where none of several has this name."""
    if template is None or isinstance(template, str):
        return {} if template is None else {"default": template}
    named = schema.list_of(schema.record({"name": schema.text(), "template": schema.text()}))
    schema.check(template, named, "the tokenizer's chat template", error=ModelError)
    found = {entry["name"]: str(entry["template"]) for entry in cast("list[dict[str, str]]", template)}
    if "default" not in found:
        raise ModelError(f"the tokenizer's chat templates are {', '.join(found)}; none is named default", hint=HINT)
    return found


def require_same_tokenizer(student: TokenizerVocabulary, teacher: TokenizerVocabulary) -> None:
    """A teacher scores the student's token ids, so both must read the same ids alike. Raises ModelError otherwise."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    hint = "choose both from one model family, e.g. qwen-0.5b and qwen-3b"
    differing = sorted(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    if differing:
        first = differing[0]
        raise ModelError(
            f"student and teacher have different tokenizers ({len(differing)} tokens differ, first {first!r}: "
            f"id {ours.get(first)} and {theirs.get(first)})",
            hint=hint,
        )
    special, other = ({i: t.special for i, t in x.added_tokens_decoder.items()} for x in (student, teacher))
    for index in sorted(special.keys() | other.keys()):
        if special.get(index, False) != other.get(index, False):
            token = student.convert_ids_to_tokens(index)
            raise ModelError(
                f"token {token!r} is special to one of student and teacher and text to the other", hint=hint
            )


def _text(token: object) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _file(source: ModelSource, name: str) -> Path | None:
    if not source.local:
        found = hub.fetch(source.location, name)
        return None if found is None else Path(found)
    path = Path(source.location) / name
    return path if path.is_file() else None


def require_sound_texts(source: ModelSource) -> None:
    """Raises ModelError for a small file of a tokenizer that is no JSON of ours, as by half of a surrogate pair."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        _json(source, name)


def _json(source: ModelSource, name: str) -> dict[str, Any]:
    path = _file(source, name)
    if path is None:
        return {}
    hint = "export the model again, or take another"
    values: dict[str, Any] = schema.read_record(path, _CONFIG, hint=hint, error=ModelError)
    return values
