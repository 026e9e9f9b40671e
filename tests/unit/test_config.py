"""Settings from text: what parses to what, and what the errors say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_cli.core.config import apply_options, describe, load_toml, parse_options, to_toml
from dgpo_cli.core.registry import load
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.registry import get as get_format


@dataclass(frozen=True, slots=True)
class Inner:
    beta: float = field(default=0.5, metadata={"source": "paper", "help": "how much"})
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    name: str
    method: Literal["kd", "seqkd"] = "kd"
    flag: bool = False
    ks: tuple[int, ...] = (2, 5)
    pair: tuple[str, float] = ("a", 1.0)
    where: Path | None = None
    inner: Inner = field(default_factory=Inner)
    extra: dict[str, object] = field(default_factory=dict)


def settings(**options: Any) -> Settings:
    return apply_options(Settings, {"name": "n"} | options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"flag": "true"}, Settings("n", flag=True)),
        ({"flag": "False"}, Settings("n", flag=False)),
        ({"method": "seqkd"}, Settings("n", method="seqkd")),
        ({"ks": "1,10"}, Settings("n", ks=(1, 10))),
        ({"ks": [3]}, Settings("n", ks=(3,))),
        ({"pair": "b, 2"}, Settings("n", pair=("b", 2.0))),
        ({"where": "runs/a"}, Settings("n", where=Path("runs/a"))),
        ({"where": "none"}, Settings("n", where=None)),
        ({"inner": {"beta": "1e-3", "steps": "7"}}, Settings("n", inner=Inner(0.001, 7))),
        ({"inner": {"steps": "none"}}, Settings("n", inner=Inner())),
        ({"inner": {"beta": 2}}, Settings("n", inner=Inner(2.0))),
        ({"extra": {"a": 1}}, Settings("n", extra={"a": 1})),
    ],
)
def test_text_becomes_the_type_of_the_field(options: dict[str, Any], expected: Settings) -> None:
    got = settings(**options)
    assert got == expected
    assert type(got.inner.beta) is float


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "dpo"}, "method = 'dpo' is not 'kd' or 'seqkd'"),
        ({"flag": "yes"}, "flag = 'yes' is not bool"),
        ({"flag": 1}, "flag = 1 is not bool"),
        ({"ks": "1,x"}, "ks = 'x' is not int"),
        ({"pair": "a"}, "pair = 'a' is not tuple[str, float]"),
        ({"inner": {"beta": "nan"}}, "beta = 'nan' is not float"),
        ({"inner": {"beta": True}}, "beta = True is not float"),
        ({"inner": {"steps": 1.5}}, "steps = 1.5 is not int or none"),
        ({"inner": {"steps": True}}, "steps = True is not int or none"),
        ({"inner": 3}, "inner = 3 is not Inner"),
        ({"name": None}, "name = None is not str"),
    ],
)
def test_what_does_not_parse_is_named_with_what_would(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**options)
    assert caught.value.message == says
    assert caught.value.hint


def test_an_unknown_key_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Inner has no option 'betta'") as caught:
        settings(inner={"betta": 1})
    assert caught.value.hint == "did you mean: beta"


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match="Settings needs name"):
        apply_options(Settings, {})


def test_options_nest_by_dots() -> None:
    assert parse_options(["objective.beta=0.1", "seed=3", "objective.x.y=a=b", "empty="]) == {
        "objective": {"beta": "0.1", "x": {"y": "a=b"}},
        "seed": "3",
        "empty": "",
    }


@pytest.mark.parametrize(
    "options", [["seed"], ["=1"], ["a..b=1"], ["a=1", "a.b=2"], ["a.b=2", "a=1"], ["a=1", "a=2"]], ids=" ".join
)
def test_ambiguous_options_are_refused(options: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_options(options)


def test_describe_gives_name_type_default_source_and_help() -> None:
    beta, steps = describe(Inner)
    assert (beta.name, beta.type, beta.default, beta.source, beta.help) == ("beta", "float", 0.5, "paper", "how much")
    assert (steps.name, steps.type, steps.default) == ("steps", "int or none", None)
    assert {note.name: note.type for note in describe(Settings)}["method"] == "'kd' or 'seqkd'"


def test_toml_by_hand() -> None:
    assert to_toml({"a": 1, "b": None, "c": "x", "t": {"d": 1e-05, "e": [True, "q"], "u": {"f": Path("p")}}}) == (
        'a = 1\nc = "x"\n\n[t]\nd = 1e-05\ne = [\n    true,\n    "q",\n]\n\n[t.u]\nf = "p"\n'
    )


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text
tables = st.recursive(
    st.dictionaries(text, scalars | st.lists(scalars, max_size=3), max_size=3),
    lambda inner: st.dictionaries(text, scalars | inner, max_size=3),
    max_leaves=6,
)


@given(tables)
def test_toml_is_read_back(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]) -> None:
    file = tmp_path_factory.mktemp("toml") / "a.toml"
    file.write_text(to_toml(table), encoding="utf-8", newline="")
    assert load_toml(file) == table


def test_toml_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError):
        to_toml({"a": object()})


@pytest.mark.parametrize(
    "content", [None, b"a = ", b"\xff\xfe", b"a = " + b"9" * 5000], ids=["missing", "broken", "encoding", "digits"]
)
def test_a_bad_toml_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load_toml(file)


def test_a_registry_loads_by_name_and_lists_the_names() -> None:
    table = {"sqrt": "math:sqrt", "pi": "math:pi"}
    assert load(table, "sqrt", "function")(9) == 3
    with pytest.raises(ConfigError, match="unknown function 'cbrt'") as caught:
        load(table, "cbrt", "function")
    assert caught.value.hint == "choose one of: sqrt, pi; or name your own as package.module:Attribute"


def test_a_registry_loads_what_a_package_outside_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_things.py").write_text("def brevity(trajectory, text):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load({}, "own_things:brevity", "reward part")(None, "") == 1.0
    with pytest.raises(ConfigError, match="has no attribute 'length'"):
        load({}, "own_things:length", "reward part")
    (tmp_path / "broken_things.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="'broken_things:brevity': ZeroDivisionError: division by zero"):
        load({}, "broken_things:brevity", "reward part")
    with pytest.raises(ConfigError, match="'own_things:brevity' is no engine: it has no open"):
        load({}, "own_things:brevity", "engine", has=("__call__", "open"))
    with pytest.raises(ConfigError, match="No module named 'no_such_things'") as caught:
        load({}, "no_such_things.of_mine:brevity", "reward part")
    assert "python -c 'import no_such_things.of_mine'" in str(caught.value.hint)


def test_an_imported_module_without_the_named_thing_is_one_line_everywhere(dgpo: Any) -> None:
    with pytest.raises(ConfigError, match="format 'json:none': json has no attribute 'none'"):
        get_format("json:none")
    for command in ("kd", "rl"):
        ended = dgpo(command, "--describe", "json:dumps")
        assert ended.status == 1 and ended.errors == ["error: 'json:dumps' is no method: it has no Config"]


def test_a_file_that_others_write_cannot_name_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ran.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="unknown retriever 'ran:It'") as caught:
        load({"bm25": "math:pi"}, "ran:It", "retriever", outside=False)
    assert caught.value.hint == "choose one of: bm25"


def test_an_option_whose_key_is_a_name_from_outside() -> None:
    assert parse_options(["reward.my_pkg.rewards:brevity=0.5", "reward.em=1"]) == {
        "reward": {"my_pkg.rewards:brevity": "0.5", "em": "1"}
    }
