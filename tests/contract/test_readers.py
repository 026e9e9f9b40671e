"""JSON from outside goes through one reader, which holds the limits: `core/untrusted.parse_json`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "dgpo_cli"
ALLOWED = {
    "core/untrusted.py": "the reader itself",
    "core/records.py": "as_read: what this process wrote",
    "models/codec.py": "what the tokenizers library says of a tokenizer that it has read",
    "models/gguf_tokenizer.py": "likewise",
    "models/processes.py": "what the processes of one run send each other",
}
PARSERS = {"load", "loads", "JSONDecoder", "raw_decode"}


def parsing_lines(source: str) -> list[int]:
    """Lines that use or import what parses JSON, under whichever name."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in PARSERS:
            owner = node.value
            if node.attr not in ("load", "loads") or (isinstance(owner, ast.Name) and owner.id == "json"):
                lines.append(node.lineno)
        elif isinstance(node, ast.Import):
            lines += [node.lineno for name in node.names if name.name in ("orjson", "ujson", "simplejson")]
            lines += [node.lineno for name in node.names if name.name == "json" and name.asname]
        elif isinstance(node, ast.ImportFrom) and node.module in ("json", "json.decoder"):
            lines += [node.lineno for name in node.names if name.name in PARSERS]
    return lines


def test_only_one_module_parses_json_from_outside() -> None:
    found = {
        str(path.relative_to(SOURCES)): lines
        for path in sorted(SOURCES.rglob("*.py"))
        if (lines := parsing_lines(path.read_text(encoding="utf-8")))
    }
    assert found.keys() == ALLOWED.keys(), {name: lines for name, lines in found.items() if name not in ALLOWED}
    assert all(len(lines) == 1 for lines in found.values()), found


@pytest.mark.parametrize(
    "source",
    ["import json\njson.loads(x)", "import json\njson.load(f)", "import json as j", "from json import loads",
     "import json\njson.JSONDecoder()", "import orjson"],
)  # fmt: skip
def test_the_search_sees_it(source: str) -> None:
    assert parsing_lines(source)
    assert not parsing_lines("import json\nimport numpy as np\njson.dumps(x)\nnp.load(f)")
