"""A trained model as a folder for others: weights, tokenizer, generation config, protocol and a model card."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core import folders
from dgpo_cli.core.config import to_toml
from dgpo_cli.core.disk import check_space
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_config import CONFIG_FILE, read_config
from dgpo_cli.core.run_dir import list_runs
from dgpo_cli.core.run_metrics import measured, read_metrics
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.schema import read_record
from dgpo_cli.errors import ModelError, first_line
from dgpo_cli.evaluation.measured import weights_digest
from dgpo_cli.evaluation.measurement import REPORT
from dgpo_cli.export.as_gguf import write_folder
from dgpo_cli.export.model_card import SCRIPT, CardFacts, Measurement, Stage, render
from dgpo_cli.export.request import form_of
from dgpo_cli.formats.protocol import LIMITS
from dgpo_cli.models import gguf
from dgpo_cli.models.aliases import ALIASES
from dgpo_cli.models.load import LoadedModel, load_model, write_model
from dgpo_cli.models.sources import ModelSource, config_values, resolve
from dgpo_cli.objectives.registry import OBJECTIVES, create
from dgpo_cli.training.settings import deviations
from dgpo_cli.training.teacher.settings import GOLD

SPACE_FACTOR = 1.1  # ours: tokenizer and card in addition to the weights


def export(
    name: str,
    target: Path,
    *,
    dtype: str | None = None,
    as_gguf: bool = False,
    quantize: str | None = None,
    runs_root: Path = Path("runs"),
) -> dict[str, Any]:
    """Write the model that `name` leads to into `target`, replacing it as a whole. Returns path, bytes, parameters.

    `dtype` None keeps the one that the weights are saved in. `as_gguf` writes them as one GGUF file, which `quantize`
    may round further.
    """
    form = form_of(dtype, quantize)
    source = resolve(name, runs_root)
    kept = as_gguf or dtype is None
    loaded = load_model(source, device=torch.device("cpu"), dtype=None if kept else getattr(torch, str(dtype)))
    target.parent.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    check_space(target.parent, int(size * SPACE_FACTOR))
    known = facts(target.name, loaded, runs_root)
    with folders.replacing(target) as folder:
        if as_gguf:
            base = known.base if known.base_on_hub else None
            file = write_folder(folder, target.name, loaded, form, base=base, licence=known.licence)
            form = file.stem.rpartition("-")[2]
            known = replace(known, file=file.name)
        else:
            write_model(folder, loaded.model, loaded.tokenizer, loaded.protocol)
            form = form_of(str(loaded.model.dtype).removeprefix("torch."), None)
        known = replace(known, rounded_to=None if form in _holding(source) else form)
        write_atomic(folder / "README.md", render(known))
    return {
        "path": str(target),
        "bytes": sum(p.stat().st_size for p in target.iterdir()),
        "parameters": loaded.model.num_parameters(),
        "dtype": form if as_gguf else str(loaded.model.dtype).removeprefix("torch."),
        "protocol": loaded.protocol.name,
    } | ({"file": str(target / known.file)} if known.file else {})


def _holding(source: ModelSource) -> tuple[str, ...]:
    """The forms that hold the saved weights of a model as they are."""
    values = config_values(source) or {}
    saved = str(values.get("dtype") or values.get("torch_dtype") or "float32")
    return {"bfloat16": ("f32", "bf16"), "float16": ("f32", "f16")}.get(saved, ("f32",))


def facts(name: str, loaded: LoadedModel, runs_root: Path) -> CardFacts:
    """Facts about a model from its run folder, those of its ancestors, and the evaluations of these weights."""
    stages, base = history(loaded.source, runs_root)
    alias = ALIASES.get(base)
    made = gguf.record_of(Path(base)) if alias is None and Path(base).is_dir() else None
    repo = base if alias is None else alias.repo
    if made is not None:
        repo = str(made["repository"] or made["file"])
    newest = _run_of(loaded.source)
    return CardFacts(
        name=name,
        base=repo if _on_hub(repo) else _public(repo),
        base_on_hub=_on_hub(repo),
        licence=next((a.licence for a in ALIASES.values() if a.repo == repo), made["licence"] if made else None),
        parameters=loaded.model.num_parameters(),
        read_from=None if made is None else gguf.described(made) + f", SHA-256 {made['sha256'][:16]}",
        protocol=loaded.protocol.name,
        usage=loaded.protocol.agent_format.usage,
        stages=stages,
        measurements=measurements(
            weights_digest(loaded), {runs_root} if newest is None else {runs_root, newest.parent}, _usual(loaded)
        ),
        validation_em=None if newest is None else _validation_em(newest),
        versions={} if newest is None else read_run(newest).get("versions", {}),
    )


def history(source: ModelSource, runs_root: Path) -> tuple[list[Stage], str]:
    """The training runs that led to a model, oldest first, and what the first of them started from."""
    stages: list[Stage] = []
    seen: set[Path] = set()
    while True:
        run = _run_of(source)
        if run is None or run.resolve() in seen or not (run / CONFIG_FILE).is_file():
            break
        seen.add(run.resolve())
        config = read_config(run)
        student, teacher = config.get("student"), config.get("teacher")
        method = str(config.get("method", read_run(run)["command"]))
        asked = _public(teacher) if teacher is not None and _asks_teacher(method, config) else None
        # Without a teacher that was asked, its settings are defaults that nothing came of.
        used = config if asked else {key: value for key, value in config.items() if not key.startswith("teacher")}
        rows = read_metrics(run)
        stages.insert(
            0,
            Stage(
                run.name,
                method,
                _public(student),
                asked,
                to_toml(_without_folders(used)),
                deviations=deviations(config),
                source=_writer(config.get("trajectories")),
                steps=max((int(row["step"]) for row in rows), default=None),
                best_step=_best_step(rows),
            ),
        )
        if not isinstance(student, str):
            return stages, "random weights"
        try:
            source = resolve(student, runs_root)
        except ModelError:  # gone since; its name is all that is left
            return stages, student
    return stages, source.name if not source.local else source.location


def _asks_teacher(method: str, config: Mapping[str, Any]) -> bool:
    """Whether a run of these settings loads the teacher that it names."""
    from dgpo_cli.objectives.base import Need

    if method not in OBJECTIVES:
        return False
    needs = create(method, config.get("objective", {})).needs
    return bool(needs & {Need.TEACHER_LOGPROBS, Need.TEACHER_DISTRIBUTION})


def _writer(trajectories: object) -> str | None:
    """Who wrote the trajectories of a file or run, if its run still exists: a model, a script, or a file."""
    if not isinstance(trajectories, str):
        return None
    path = Path(trajectories)
    run = next((place for place in (path, path.parent) if (place / CONFIG_FILE).is_file()), None)
    config = {} if run is None else read_config(run)
    teacher = config.get("teacher")
    if teacher == GOLD:
        return SCRIPT
    if config.get("demonstrations") is not None:
        return f"the demonstrations in {_public(config['demonstrations'])}"
    return None if teacher is None else _public(teacher)


def _best_step(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Of the first validation with the best score; None where none has a score."""
    scored = [row for row in rows if measured(row, "eval_score") is not None]
    return int(max(scored, key=lambda row: row["eval_score"])["step"]) if scored else None


def _usual(loaded: LoadedModel) -> dict[str, Any]:
    """Limits of episodes under which `dgpo eval` asks the model by itself."""
    room = RolloutSettings().observation_room(getattr(loaded.model.config, "max_position_embeddings", None))
    fitted = {} if room is None else {"max_observation_tokens": room}
    return asdict(RolloutSettings()) | fitted | loaded.protocol.limits


def measurements(weights: str, roots: Collection[Path], usual: Mapping[str, Any] | None = None) -> list[Measurement]:
    """Results of the finished `dgpo eval` runs of exactly these weights; of one benchmark and one way the newest.

    Limits of episodes that are not `usual` are told.
    """
    newest: dict[tuple[str, str], Measurement] = {}
    for run in (run for root in sorted({root.resolve() for root in roots}) for run in list_runs(root)):
        file = run / "report.json"
        if read_run(run)["command"] != "eval" or not file.is_file():
            continue
        report = read_record(file, REPORT, hint=f"delete {run}, or evaluate again")
        if report["model"]["weights"] != weights or not report["complete"]:
            continue
        temperature = report["decoding"]["temperature"]
        decoding = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        asked, known = report.get("rollout", {}), usual or {}
        decoding += "".join(f", {n} {asked[n]}" for n in LIMITS if n in asked and asked[n] != known.get(n, asked[n]))
        for name, values in report["benchmarks"].items():
            passages = values["index"].get("passages")
            corpus = "" if passages is None else f", {values['index']['retriever']} over {passages:,} passages"
            newest[name, decoding] = Measurement(
                name, values["n"], values["em"], _interval(values), values["f1"], decoding + corpus
            )
    return list(newest.values())


def _interval(values: Mapping[str, Any]) -> tuple[float, float]:
    return values["em_interval"]["low"], values["em_interval"]["high"]


def _validation_em(run: Path) -> float | None:
    scores = [em for row in read_metrics(run) if (em := measured(row, "eval_em")) is not None]
    return max(scores, default=None)


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder to the hub; returns its address. A repository that does not exist is made, private by default."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="dgpo export")
    except (HfHubHTTPError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{repo} cannot be pushed: {reason}", hint=f"the folder {folder} is complete; try again"
        ) from error
    return f"https://huggingface.co/{repo}"


def _run_of(source: ModelSource) -> Path | None:
    """The run folder whose best/ a model is."""
    folder = Path(source.location)
    return folder.parent if source.local and (folder.parent / "run.json").is_file() else None


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _public(name: object) -> str:
    """A model as a card names it: of a local path the last folder that says something."""
    text = str(name)
    if not Path(text).exists() and not text.startswith((".", "/", "~")):
        return text
    path = Path(text)
    return path.parent.name if path.name == "best" else path.name


def _without_folders(value: Any) -> Any:
    """Settings, at any depth, without the folders of the machine they ran on."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return _public(value) if isinstance(value, str) and value.startswith(("/", "./")) else value
