"""What the site needs beside mkdocs: formulas as MathML, and the files above docs/ that its pages link to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
FILES = ("LICENSE", "examples/from_python.py", "examples/dgpo_from_scratch.py")


def mathml(latex: str, display: str) -> str:
    """Raises PluginError where the result is no well-formed element: a command that the converter does not know."""
    result = convert(latex, display=display)
    try:
        ElementTree.fromstring(result)
    except ElementTree.ParseError as error:
        raise PluginError(f"no formula: {latex}: {error}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", result):
        raise PluginError(f"{unknown[0]} is unknown in the formula {latex}")
    return result


def block(source: str, *_: Any, **__: Any) -> str:
    """A fenced block named math, as GitHub has it."""
    return f"<p>{mathml(source, 'block')}</p>"


class InlineMath(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(mathml(m[1], "inline")), m.start(0), m.end(0)


class InlineMathExtension(Extension):
    """$`...`$, which GitHub sets as mathematics within a line."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(InlineMath(r"\$`([^`]+)`\$", md), "inline-math", 200)


def on_config(config: Any) -> Any:
    config.markdown_extensions.append(InlineMathExtension())
    fences = {"custom_fences": [{"name": "math", "class": "math", "format": block}]}
    config.mdx_configs["pymdownx.superfences"] = fences
    return config


def on_files(files: Files, config: Any) -> Files:
    for name in (*PAGES, *FILES):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between docs/ and the folder above it: on the site both are one."""
    if page.file.src_uri in PAGES:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./(?=[A-Z]|examples/)", "](", markdown) if "/" not in page.file.src_uri else markdown
