"""The README.md of an exported model: where it comes from, what it was measured at, and what not to expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.core import shell
from dgpo_cli.core.figures import counted, percent, percent_range
from dgpo_cli.core.markdown import block, code, inline

METHODS = {
    "seqkd": "maximum likelihood on the teacher's trajectories (SeqKD)",
    "kd": "cross-entropy and forward KL on the teacher's trajectories (KD)",
    "ppo": "PPO with a KL to the starting policy (Search-R1, arXiv 2503.09516)",
    "dgpo": "DGPO, distillation-guided policy optimization (arXiv 2508.20324)",
}

SCRIPT = "a script that knows the supporting passages"  # `--teacher gold`, which is nobody's

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
    teacher: str | None  # that was asked while it trained
    settings: str  # its config.toml
    source: str | None = None  # who wrote the trajectories
    steps: int | None = None  # that were done
    best_step: int | None = None  # whose weights were kept, where validations chose them
    deviations: Sequence[str] = ()  # from the paper's algorithm


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the results table."""

    benchmark: str
    questions: int
    em: float
    em_interval: tuple[float, float]  # of 95 %
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
    usage: str  # a program that runs it with plain transformers
    stages: Sequence[Stage]  # oldest first
    measurements: Sequence[Measurement]
    validation_em: float | None  # the best of the run's own periodic evaluations
    versions: Mapping[str, str]
    read_from: str | None = None  # of a base that a GGUF file held: what it was and how it was stored
    file: str | None = None  # the GGUF file that has the weights
    rounded_to: str | None = None  # the form of the weights in the folder, where it is a shorter one than was measured


def render(facts: CardFacts) -> str:
    """Markdown with the hub's metadata block on top."""
    parts = [
        _metadata(facts),
        f"# {inline(facts.name)}",
        _summary(facts),
        "## Origin",
        _origin(facts),
        "## Results",
        _results(facts),
        "## Use",
        _use(facts),
        "## Limits",
        _LIMITS,
        "## Settings",
        "As they were planned; what was done stands under Origin.",
        *(f"{inline(stage.run)}\n\n{block(stage.settings.strip(), 'toml')}" for stage in facts.stages),
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
    """The hub's block, with a model index of what was measured."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = facts.licence
    known = licence is not None and licence.startswith(("apache", "llama"))
    values = ModelCardData(
        library_name="transformers" if facts.file is None else "gguf",
        pipeline_tag="text-generation",
        license=None if licence is None else licence if known else "other",
        license_name=None if known else licence,
        base_model=facts.base if facts.base_on_hub else None,
        tags=sorted({"search-agent", "dgpo-cli", *(stage.method for stage in facts.stages)}),
        model_name=facts.name,
        eval_results=[
            EvalResult(
                task_type="question-answering",
                dataset_type=m.benchmark,
                dataset_name=m.benchmark,
                dataset_args={"questions": m.questions, "conditions": m.conditions},
                metric_type="exact_match",
                metric_name="EM",
                metric_value=m.em,
                metric_args={"interval_95": list(m.em_interval)},
            )
            for m in (() if facts.rounded_to else facts.measurements)
        ]
        or None,
    )
    return f"---\n{values.to_yaml()}\n---"


def _origin(facts: CardFacts) -> str:
    name = inline(facts.base)
    base = f"[{name}](https://huggingface.co/{facts.base})" if facts.base_on_hub else f"{name} (not published)"
    lines = [f"- base model: {base}"]
    if facts.read_from is not None:
        lines.append(f"- read from a GGUF file: {inline(facts.read_from)}; its weights were written out as float32")
    lines += [f"- {inline(stage.run)}: {inline(_history(stage))}" for stage in facts.stages]
    named = {name for stage in facts.stages for name in (stage.teacher, stage.source)}
    teachers = sorted(name for name in named if name not in (None, SCRIPT))
    others = f"; whether {inline(' and '.join(teachers))} may be learned from is theirs to say" if teachers else ""
    if facts.licence is not None:
        lines.append(f"- licence of the base model: {facts.licence}{others}")
    elif facts.base_on_hub:
        lines.append(f"- licence: not recorded; the page of {facts.base} names that of the base model{others}")
    else:
        lines.append(f"- licence: none recorded{others}")
    return "\n".join(lines)


def _history(stage: Stage) -> str:
    """The work of a stage, and its models."""
    parts = [METHODS.get(stage.method, stage.method)]
    if stage.steps is not None:
        chosen = "" if stage.best_step in (None, stage.steps) else f", the weights of step {stage.best_step:,} kept"
        parts.append(f"{counted(stage.steps, 'step')}{chosen}")
    if stage.source is not None:
        parts.append(f"trajectories by {stage.source}")
    if stage.teacher is not None:
        parts.append(f"teacher {stage.teacher}")
    return "; ".join([", ".join(parts), *(f"unlike the paper, {text}" for text in stage.deviations)])


def _results(facts: CardFacts) -> str:
    measurements = facts.measurements
    if not measurements:
        if facts.validation_em is None:
            return "Not measured with `dgpo eval` yet."
        best = percent(facts.validation_em)
        return f"Not measured with `dgpo eval` yet. Best EM on the validation questions of its run: {best}."
    rows = [
        f"| {inline(m.benchmark)} | {m.questions:,} | {percent(m.em)} | {percent_range(*m.em_interval)} "
        f"| {percent(m.f1)} | {inline(m.conditions)} |"
        for m in measurements
    ]
    head = "| benchmark | questions | EM | 95 % | F1 | conditions |\n|---|--:|--:|---|--:|---|"
    before = f"\n\nMeasured before the weights were rounded to {facts.rounded_to}." if facts.rounded_to else ""
    return "\n".join([head, *rows]) + before


def _use(facts: CardFacts) -> str:
    if facts.file is not None:
        return (
            f"{code(facts.file)} holds weights, tokenizer, chat template and agent text ({facts.protocol}) "
            "for llama.cpp and what is built on it. The search loop runs outside of it, in this folder:\n\n"
            f"```bash\nllama-server -m {shell.word(Path(facts.file))} --port 8080\n"
            "dgpo chat --model . --model-url http://127.0.0.1:8080/v1 --index INDEX\n```\n\n"
            "For ollama: `ollama create NAME -f Modelfile`, then the same with `http://127.0.0.1:11434/v1`. "
            "`protocol.json` has the prompt and the form of search results, for a loop of one's own over "
            "`/v1/completions`."
        )
    return (
        f"`protocol.json` holds the agent text ({facts.protocol}): the prompt, the form of search results, and what is "
        "said after a step without an action. Weights are safetensors. With transformers alone, in this folder:\n\n"
        f"```python\n{facts.usage}```\n\n"
        "With dgpo, whose index and chat do the same and more: `dgpo index CORPUS`, "
        f"{code(shell.command('dgpo', 'chat', '--model', Path(facts.name)))}."
    )
