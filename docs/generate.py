"""Write what follows from the code: docs/cli.md, docs/methods/*.md and their places in the site, README's commands, the
pinned flags.

`make docs` runs it; `python docs/generate.py --check` only compares, and a test does the same.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from dgpo_cli.cli import app
from dgpo_cli.core import registry
from dgpo_cli.core.config import describe
from dgpo_cli.objectives.base import Need
from dgpo_cli.objectives.registry import OBJECTIVES, create
from dgpo_cli.training.settings import KDSettings, RLSettings

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "DGPO_SEARCH_TOKEN": "token of the search server that is asked, and of `dgpo serve` without --token-file",
    "DGPO_SEARCH_TIMEOUT": "seconds that a reply of a search server or of Milvus may take, 30 by default",
    "DGPO_TEACHER_KEY": "key of the model server in --teacher-url",
    "DGPO_MODEL_KEY": "key of the model server in --model-url",
    "DGPO_MILVUS_TOKEN": "token of the Milvus server that an index lies in",
    "DGPO_DEBUG": "set, a command shows tracebacks in the place of one line",
    "HF_HOME": "where models of the hub are kept; of Hugging Face, whose other variables count too",
    "HF_HUB_OFFLINE": "1 takes only what is on this machine",
    "WANDB_PROJECT": "project for --report-to wandb, whose other variables count too",
    "TRACKIO_SPACE_ID": "Space for --report-to trackio",
    "RANK, WORLD_SIZE, LOCAL_RANK": "set by `accelerate launch` and torchrun: one process of several",
}
SYMBOLS = {
    r"t": "place of a token among the L tokens of its episode that a model wrote",
    r"y_t": "the token at t",
    r"\ell_t": "loss of the token at t; a step divides the weighted sum of all its tokens by the sum of their weights",
    r"\pi_\theta": "the student's distribution at t, with gradient",
    r"\pi_{\text{old}}": "the student that wrote the episode",
    r"\pi_0": "the reference: the student as it was before the run",
    r"\pi_T": "the teacher",
    r"z": "logits of a model",
    r"v": "a token of the vocabulary",
    r"\operatorname{KL}(p \,\|\, q)_t": "KL divergence of the two distributions at t, over the whole vocabulary",
    r"\operatorname{H}": "entropy of the distribution at t, over the whole vocabulary",
    r"R": "reward of the episode; R_1 to R_G are those of all attempts at its question",
    r"[\ldots]": "1 where the condition holds, else 0",
    r"A_t": "advantage",
    r"G_t": "return",
    r"V_t": "value of the critic before the token at t is written",
    r"\operatorname{whiten}": "to mean 0 and variance 1 over the written tokens of a step",
    r"S": "episodes of a step",
    r"\epsilon": "`clip`; the upper one of grpo is `clip_high`",
    r"c": "`coef` of opd, `reward_clip` of minillm, `value_clip` of the critic",
    r"c_H": "`entropy_coef`",
    r"\alpha": "`alpha` of distillm",
    r"\beta": "`kl_coef`; in gkd `beta`",
    r"\gamma, \lambda": "`gamma` and `lam`",
    r"\sigma": "`reward_scale`",
    r"s, w": "`teacher_share` and `single_step_weight` of minillm",
    r"w_{\text{ce}}, w_{\text{kl}}": "`ce_weight` and `kl_weight`",
}
_NAMES = re.compile(r"(<!-- commands: by `make docs` -->\n).*?(?=<!-- end -->)", re.DOTALL)
_METHODS = re.compile(r"(      - methods/README\.md\n)(?:      - methods/\w+\.md\n)*")
HIDDEN_OPTIONS = {"--install-completion", "--show-completion", "--help"}
# Where deviations from the reference are declared that concern every method trained by reinforcement.
LOOP_MODULES = ("dgpo_cli.formats.tags", "dgpo_cli.agent.loop", "dgpo_cli.training.credit")


def walk(command: Any, path: str = "dgpo") -> Iterator[tuple[str, Any]]:
    """(command path, Typer's command) of every command that does something, in the order of the help."""
    if children := getattr(command, "commands", None):
        for name in command.list_commands(None):
            yield from walk(children[name], f"{path} {name}")
    else:
        yield path, command


def parameters(command: Any) -> Iterator[tuple[str, Any]]:
    """(name as typed, Typer's parameter) without what every command has."""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield parameter.metavar or parameter.name.upper(), parameter
        elif not HIDDEN_OPTIONS & set(parameter.opts):
            yield ", ".join(sorted([*parameter.opts, *parameter.secondary_opts], key=len, reverse=True)), parameter


def cli_flags() -> str:
    """One line per flag; pinned by a test, since flags only ever grow."""
    root = typer.main.get_command(app)
    return "".join(f"{path} {name}\n" for path, command in walk(root) for name, _ in parameters(command))


def cli_page() -> str:
    root = typer.main.get_command(app)
    lines = ["# Commands", "", "Generated from the program by `make docs`. `dgpo COMMAND --help` shows the same.", ""]
    lines += [command_table()]
    for path, command in walk(root):
        lines += [f"## `{path}`", "", _unwrapped(command.help or ""), ""]
        lines += ["| option | default | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {_default(p)} | {_cell(p.help or '')} |" for name, p in parameters(command)]
        lines.append("")
    return "\n".join([*lines, *_environment()])


def _environment() -> list[str]:
    """Raises ValueError for a variable of ours that the sources name and the table does not."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    if unknown := set(re.findall(r"\bDGPO_[A-Z_]+", sources)) - ENVIRONMENT.keys():
        raise ValueError(f"say in docs/generate.py what these are for: {', '.join(sorted(unknown))}")
    lines = ["## Environment", "", "Keys and tokens are given this way alone: no run records them.", ""]
    lines += ["| variable | meaning |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items()), ""]


def command_table() -> str:
    """The commands of the first level, each with the first sentences of its help."""
    root: Any = typer.main.get_command(app)
    rows = []
    for name in root.list_commands(None):
        first = _cell(_unwrapped(root.commands[name].help or "").split("\n")[0])
        rows.append(f"| `dgpo {name}` | {first} |")
    return "\n".join(["| command | |", "|---|---|", *rows, ""])


def readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    root: Any = typer.main.get_command(app)
    names = " ".join(f"`{name}`" for name in root.list_commands(None))
    return _NAMES.sub(lambda found: f"{found[1]}{names}\n", text)


def site() -> str:
    """The site's configuration with a page for every method; a page that it lacks fails the build."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = "".join(f"      - methods/{name}.md\n" for name in OBJECTIVES)
    return _METHODS.sub(lambda found: found[1] + pages, text)


def _default(parameter: Any) -> str:
    value = parameter.default
    if callable(value) or value is None or value is False or value == ():
        return "required" if parameter.required else ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _unwrapped(text: str) -> str:
    """Paragraphs on one line each, as Markdown wants them."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def method_page(name: str) -> str:
    objective = registry.load(OBJECTIVES, name, "method")
    module = import_module(objective.__module__)
    rewarded = Need.REWARD in create(name, {}).needs
    command = "rl" if rewarded else "kd"
    lines = [
        f"# {name}",
        "",
        f"Generated from the code by `make docs`. Run it with `dgpo {command} --method {name}`.",
        "",
    ]
    lines += [_unwrapped(module.__doc__ or ""), "", _unwrapped(inspect.getdoc(objective) or ""), ""]
    lines += ["## Formula", "", "The symbols stand in [the list of all methods](README.md#symbols).", ""]
    lines += _mathematics(objective)
    if rewarded:
        lines += ["## Deviations of the loop around it", ""]
        lines += [f"- {text}" for text in _loop_deviations()] + [""]
    lines += _settings("", objective.Config, "objective.", command)
    lines += _settings(" of the run", RLSettings if rewarded else KDSettings, "", command)
    return "\n".join(lines)


def _mathematics(objective: Any) -> list[str]:
    """The formulas of a method, each after what it is; GitHub and the site set such blocks as mathematics."""
    return [
        line
        for what, latex in formulas(objective)
        for line in (f"{what[0].upper()}{what[1:]}:", "", "```math", latex, "```", "")
    ]


def formulas(objective: Any) -> list[tuple[str, str]]:
    """(what it is, LaTeX); a line that is indented goes on with the formula above it."""
    lines = re.sub(r"\n\s+", " ", inspect.cleandoc(objective.formulas)).splitlines()
    return [(what, latex) for what, _, latex in (line.partition(": ") for line in lines)]


def methods_page() -> str:
    lines = ["# Methods", "", "Generated from the code by `make docs`.", ""]
    for command in ("kd", "rl"):
        lines += [f"## `dgpo {command}`", "", "| method | what it is |", "|---|---|"]
        for name in OBJECTIVES:
            if (Need.REWARD in create(name, {}).needs) == (command == "rl"):
                module = import_module(registry.load(OBJECTIVES, name, "method").__module__)
                lines.append(f"| [`{name}`]({name}.md) | {_cell((module.__doc__ or '').split(chr(10))[0])} |")
        lines.append("")
    lines += [
        "## Symbols",
        "",
        "All formulas are about one written token; tokens of prompts and passages have no loss.",
        "",
    ]
    lines += [
        "| symbol | meaning |",
        "|---|---|",
        *(f"| $`{symbol}`$ | {meaning} |" for symbol, meaning in SYMBOLS.items()),
    ]
    return "\n".join([*lines, ""])


def _loop_deviations() -> list[str]:
    """What the modules of the loop declare as deviations from the reference, a paragraph each."""
    paragraphs = [p for name in LOOP_MODULES for p in (import_module(name).__doc__ or "").split("\n\n")]
    return [_cell(p.partition(":")[2]) for p in paragraphs if p.startswith("Deviation")]


def _settings(of: str, cls: type, prefix: str, command: str) -> list[str]:
    """A settings class as a table, and after it those of its sections."""
    notes = describe(cls)
    sections = [note for note in notes if is_dataclass(note.default)]
    plain = [note for note in notes if note not in sections and not isinstance(note.default, dict)]
    if not notes:
        return []
    lines = [f"## Settings{of}", "", f"Given as `-o {prefix}NAME=VALUE` to `dgpo {command}`.", ""]
    lines += ["| name | type | default | meaning | source |", "|---|---|---|---|---|"]
    for note in plain:
        default = "" if note.default is MISSING else f"`{note.default}`"
        lines.append(f"| `{note.name}` | {_cell(note.type)} | {default} | {_cell(note.help)} | {_cell(note.source)} |")
    lines.append("")
    for section in sections:
        lines += _settings(f" of `{section.name}`", type(section.default), f"{section.name}.", command)
    return lines


def pages() -> dict[Path, str]:
    methods = {ROOT / "docs" / "methods" / f"{name}.md": method_page(name) for name in OBJECTIVES}
    methods[ROOT / "docs" / "methods" / "README.md"] = methods_page()
    return {
        ROOT / "README.md": readme(),
        ROOT / "mkdocs.yml": site(),
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "tests" / "contract" / "cli_flags.txt": cli_flags(),
    } | methods


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(f"stale, run `make docs`: {', '.join(str(path.relative_to(ROOT)) for path in stale)}")
    if not check:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
