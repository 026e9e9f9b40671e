"""Resumable state of a training run: safetensors and JSON, written to a temporary folder and renamed.

There is no generator state to keep: every draw is a function of the seed and the step (see `training/source.py`). The
record of a state holds the SHA-256 of its files: a state that is not what was written is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgpo_cli.core import checksums, folders
from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.core.records import to_json
from dgpo_cli.core.schema import ANYTHING, map_of, record, require, text, whole
from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import InputError
from dgpo_cli.training.fsdp import like, split
from dgpo_cli.training.learner import Learner

FORMAT = 1
_STATE = record(
    {
        "format": whole(0),
        "step": whole(0),
        "updates": map_of(whole(0)),
        "objective": ANYTHING,
        "extra": map_of(ANYTHING),
    },
    optional={"files": checksums.FILES, "sha256": text()},
)


def save(directory: Path, learner: Learner, step: int, extra: Mapping[str, Any], keep: int = 1) -> Path:
    """Write `directory`/step-N and drop all but the last `keep` states. `extra` must be JSON.

    Of several processes the first writes; the others wait, so that all may read it then.
    """
    target = directory / f"step-{step:08d}"
    moments = {name: _contiguous(optimizer.tensors()) for name, optimizer in learner.optimizers()}
    if learner.world.first:
        _write(directory, target, learner, moments, step, extra, keep)
    learner.world.gather(None)
    return target


def _write(
    directory: Path,
    target: Path,
    learner: Learner,
    moments: Mapping[str, dict[str, Tensor]],
    step: int,
    extra: Mapping[str, Any],
    keep: int,
) -> None:
    tidy(directory)
    with folders.replacing(target) as temporary:
        updates = {}
        for name, module in _modules(learner):
            save_file(_parameters(module), temporary / f"{name}.safetensors")
        for name, optimizer in learner.optimizers():
            save_file(moments[name], temporary / f"{name}_optimizer.safetensors")
            updates[name] = optimizer.updates
        if learner.replay is not None:
            learner.replay.save(temporary / "replay.jsonl")
        state = {
            "format": FORMAT,
            "step": step,
            "updates": updates,
            "objective": learner.objective.state_dict(),
            "extra": dict(extra),
            "files": checksums.describe(temporary),
        }
        (temporary / "state.json").write_text(to_json(checksums.sealed(state), indent=1, ensure_ascii=True))
    tidy(directory, keep)


def tidy(directory: Path, keep: int | None = None) -> None:
    """Delete what killed writers left of states, and with `keep` all but so many of the last."""
    for leftover in list(directory.glob(".step-*")):
        folders.settle(directory / leftover.name.removeprefix(".").rpartition(".")[0])
    whole = list_states(directory)
    for path in directory.glob("step-*"):
        if path not in whole or (keep is not None and path not in whole[-keep:]):
            folders.remove(path)


def list_states(directory: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(p for p in directory.glob("step-*") if (p / "state.json").is_file())


def load_latest(directory: Path, learner: Learner) -> tuple[int, dict[str, Any]]:
    """Put the newest state into the learner; returns (step, extra), (0, {}) where there is none.

    Raises InputError when a file of the state is damaged or belongs to other models.
    """
    states = list_states(directory)
    if not states:
        return 0, {}
    path = states[-1]
    try:
        state = require(parse_json((path / "state.json").read_bytes(), "state.json"), _STATE)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
        if checksums.is_broken(state):
            raise ValueError("state.json was changed after it was written (its SHA-256 differs)")
        if fault := checksums.fault(path, state.get("files", {})):
            raise ValueError(fault)
        with split(learner.trained()):
            for name, module in _modules(learner):
                _restore(module, load_file(path / f"{name}.safetensors"))
            for name, optimizer in learner.optimizers():
                optimizer.load(load_file(path / f"{name}_optimizer.safetensors"), state["updates"][name])
        learner.objective.load_state_dict(state["objective"])
        if learner.replay is not None:
            learner.replay.load(path / "replay.jsonl")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError, InputError) as error:
        pass_on(error)
        older = f"delete that folder to go on from {states[-2].name}, or " if states[1:] else ""
        raise InputError(
            f"the saved state {path} cannot be used: {error}", hint=f"{older}start again with --fresh"
        ) from error
    return int(state["step"]), dict(state["extra"])


def state_bytes(learner: Learner) -> int:
    """Size of one state on disk: what is trained and two moments each."""
    return sum(3 * sum(p.numel() * p.element_size() for p in _trained(m).values()) for _, m in _modules(learner))


def _modules(learner: Learner) -> list[tuple[str, torch.nn.Module]]:
    """The trained modules, by name."""
    return list(zip(("student", "critic"), learner.trained(), strict=False))


def _trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Frozen parameters are those of the model that a run began with; tied weights appear once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _parameters(module: torch.nn.Module) -> dict[str, Tensor]:
    return _contiguous({name: p.detach() for name, p in _trained(module).items()})


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _restore(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    # States of earlier versions hold what is frozen too.
    if differing := (tensors.keys() - parameters.keys()) | (_trained(module).keys() - tensors.keys()):
        raise ValueError(f"parameters differ: {sorted(differing)[:3]}")
    with torch.no_grad():
        for name in tensors:
            parameter = parameters[name]
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(like(parameter, tensors[name]))
