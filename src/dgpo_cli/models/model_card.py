"""The README.md of an exported model: where it comes from, what it was measured at, and what not to expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METHODS = {
    "seqkd": "maximum likelihood on the teacher's trajectories (SeqKD)",
    "kd": "cross-entropy and forward KL on the teacher's trajectories (KD)",
    "ppo": "PPO with a KL to the starting policy (Search-R1, arXiv 2503.09516)",
    "dgpo": "DGPO, distillation-guided policy optimization (arXiv 2508.20324)",
}

_LIMITS = """\
- It needs a search engine: without one it was never trained to answer.
- It knows one agent text, the one in protocol.json; under another prompt it may not search at all.
- Exact match counts only literally equal answers; figures hold for the corpus they were measured on.
- It repeats what it retrieves, right or wrong, and was not trained to refuse or to be harmless."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run in the model's history."""

    run: str
    method: str
    student: str
    teacher: str | None
    settings: str  # its config.toml
    deviations: Sequence[str] = ()  # from the paper's algorithm


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the results table."""

    benchmark: str
    questions: int
    em: float
    f1: float
    conditions: str  # decoding and corpus


@dataclass(frozen=True, slots=True)
class CardFacts:
    name: str
    base: str  # hub id, or what else the history starts from
    base_on_hub: bool
    licence: str | None  # of the base, where it is known
    parameters: int
    protocol: str
    stages: Sequence[Stage]  # oldest first
    measurements: Sequence[Measurement]
    validation_em: float | None  # the best of the run's own periodic evaluations
    versions: Mapping[str, str]
    read_from: str | None = None  # of a base that a GGUF file held: what it was and how it was stored


def render(facts: CardFacts) -> str:
    """Markdown with the hub's metadata block on top."""
    parts = [
        _metadata(facts),
        f"# {facts.name}",
        _summary(facts),
        "## Origin",
        _origin(facts),
        "## Results",
        _results(facts.measurements, facts.validation_em),
        "## Use",
        _use(facts),
        "## Limits",
        _LIMITS,
        "## Settings",
        *(f"{stage.run}\n\n```toml\n{stage.settings.strip()}\n```" for stage in facts.stages),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items())
        if facts.versions
        else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(facts: CardFacts) -> str:
    return (
        f"A language model of {facts.parameters:,} parameters that answers questions by searching: "
        "it thinks, asks a search engine, reads what comes back, and answers. Made with dgpo-cli."
    )


def _metadata(facts: CardFacts) -> str:
    """YAML; JSON strings are YAML strings."""
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts.licence is not None:
        values["license"] = facts.licence if facts.licence.startswith(("apache", "llama")) else "other"
        if values["license"] == "other":
            values["license_name"] = facts.licence
    if facts.base_on_hub:
        values["base_model"] = facts.base
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    tags = sorted({"search-agent", "dgpo-cli", *(stage.method for stage in facts.stages)})
    return "\n".join(["---", *lines, f"tags: {json.dumps(tags)}", "---"])


def _origin(facts: CardFacts) -> str:
    base = (
        f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_on_hub else f"{facts.base} (not published)"
    )
    lines = [f"- base model: {base}"]
    if facts.read_from is not None:
        lines.append(f"- read from a GGUF file: {facts.read_from}; its weights were written out as float32")
    for stage in facts.stages:
        teacher = f", teacher {stage.teacher}" if stage.teacher is not None else ""
        other = "".join(f"; unlike the paper, {text}" for text in stage.deviations)
        lines.append(f"- {stage.run}: {METHODS.get(stage.method, stage.method)}{teacher}{other}")
    if facts.licence is not None:
        lines.append(f"- licence of the base model: {facts.licence}; see to it that the teacher's allows your use too")
    else:
        lines.append("- licence: that of the base model and the teacher, which their own pages name")
    return "\n".join(lines)


def _results(measurements: Sequence[Measurement], validation_em: float | None) -> str:
    if not measurements:
        best = "" if validation_em is None else f" Best EM on the validation questions of its run: {validation_em:.3f}."
        return f"Not measured with `dgpo eval` yet.{best}"
    rows = [f"| {m.benchmark} | {m.questions:,} | {m.em:.3f} | {m.f1:.3f} | {m.conditions} |" for m in measurements]
    return "\n".join(["| benchmark | questions | EM | F1 | conditions |", "|---|--:|--:|--:|---|", *rows])


def _use(facts: CardFacts) -> str:
    return (
        "```\n"
        "pip install dgpo-cli\n"
        "dgpo index corpus.jsonl\n"
        f"dgpo chat --model {facts.name}\n"
        "```\n\n"
        f"`protocol.json` holds the agent text ({facts.protocol}): the prompt, the form of search results, and what is "
        "said after a step without an action. Weights are safetensors; `AutoModelForCausalLM` and `AutoTokenizer` load "
        "the folder."
    )
