"""The resolved settings of a run, in its config.toml, as whoever looks at the run reads them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.config import load_toml, to_toml
from dgpo_cli.core.places import portable
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.run_identity import Work, differences, plain
from dgpo_cli.core.setting_names import deciding
from dgpo_cli.errors import ConfigError, InputError

CONFIG_FILE = "config.toml"
_log = logging.getLogger(__name__)
_TEXTS = ("method", "model", "student", "teacher", "tokenizer", "trajectories", "demonstrations")
_TABLES = ("objective", "rollout")
# What is read of it besides by the command that wrote it; the rest is checked where a command takes it as its settings.
_CONFIG = schema.record(
    {},
    dict.fromkeys(_TEXTS, schema.text())
    | dict.fromkeys(_TABLES, schema.map_of(schema.ANYTHING))
    | {"benchmarks": schema.list_of(schema.text())},
)


def read_config(run: Path) -> dict[str, Any]:
    """Nothing where the run has none. Raises InputError or ConfigError where it is damaged."""
    file = run / CONFIG_FILE
    if not file.is_file():
        return {}
    found: dict[str, Any] = schema.check(
        load_toml(file), _CONFIG, f"{file} is damaged", hint=f"move the folder {run} away", error=InputError
    )
    return found


def write_config(run: Path, work: Work) -> None:
    write_atomic(run / CONFIG_FILE, to_toml(portable(plain(work.config))))


def restore_config(run: Path, work: Work) -> None:
    """Write the settings of a run that goes on with `work` again, where their file is gone."""
    if not (run / CONFIG_FILE).is_file():
        _log.warning("%s was gone: it is written again, with the settings of this command", run / CONFIG_FILE)
        write_config(run, work)


def remark(run: Path, record: Mapping[str, Any], work: Work) -> str:
    """As `differing`, for a remark, for which nobody's work ends: of a damaged run what is wrong with it."""
    try:
        return differing(run, record, work)
    except (InputError, ConfigError) as error:
        return error.message


def differing(run: Path, record: Mapping[str, Any], work: Work, *, partly: bool = False) -> str:
    """The differences between a run, of which `record` is the run.json, and this work, in one line.

    With `partly` the work lacks settings that are not known yet; "" where those that are known are alike.
    """
    here = {place: digest for name, digest in work.inputs.items() for place in (name, portable(name))}
    both = (read_config(run), portable(plain(work.config)))
    there, ours = (deciding(record["command"], settings) for settings in both)
    if partly:
        there = {name: value for name, value in there.items() if name in ours}
        ours = ours if there else {}  # its file may be gone
    found = differences(there, record.get("inputs"), ours, here)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ("; ".join(found[:3]) + more) or ("" if partly else "another version of dgpo made it")
