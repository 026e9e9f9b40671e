"""What trackers were told, read back from what they wrote: the rows of metrics.jsonl, under the same names.

Weights & Biases and Trackio are tried where they are installed; nothing here speaks to a network.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.offline import ROLLOUT, Offline

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_metrics import read_metrics
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer
from dgpo_cli.models.sources import resolve
from dgpo_cli.offline.demonstrations import write_demonstrations
from dgpo_cli.offline.world.demonstrator import Demonstrator, Fault
from dgpo_cli.offline.world.world import WorldSize, build_world
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.training.collapse import Alarm
from dgpo_cli.training.kd import run_kd
from dgpo_cli.training.run.tracking import TRACKERS, tracked
from dgpo_cli.training.settings import KDSettings

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # read once, when trackio is imported

Rows = dict[str, list[tuple[int, float]]]  # (step, value) by name


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever would connect to another machine fails, and no key of the user's is found."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"a test connects to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def data(offline: Offline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten trajectories; eight of them make two batches of four."""
    world = build_world(0, WorldSize(demonstrations=20, train=30, validation=10, test=10))
    path = tmp_path_factory.mktemp("data") / "demonstrations.jsonl"
    write_demonstrations(
        Demonstrator(world, Fault({})),
        [question for question in world.questions["train"] if question.hops == 1][:10],
        path,
        codec=Codec(load_tokenizer(resolve(str(offline.student))), TINYWORLD),
        retriever=open_index(offline.index).retriever,
        settings=ROLLOUT,
    )
    return path


def expected(run: Path) -> Rows:
    rows: Rows = defaultdict(list)
    for row in read_metrics(run):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                rows[name].append((row["step"], value))
    return rows


def of_tensorboard(run: Path) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(run: Path) -> Iterator[Any]:
    """Records of the run's offline files, LevelDB logs: pieces in blocks of 32 KiB, after 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process has written everything when it has ended
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        content, place, whole = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32_768 - place % 32_768 < 7:  # no room for a piece's head
                place += 32_768 - place % 32_768
                continue
            _, length, kind = struct.unpack_from("<IHB", content, place)
            whole += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # all of it, or its last piece
                record = Record()
                record.ParseFromString(whole)
                whole = b""
                yield record


def of_wandb(run: Path) -> Rows:
    rows: Rows = defaultdict(list)
    for record in wandb_records(run):
        if record.history.item:
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for name, value in values.items():
                if not name.startswith("_"):
                    rows[name].append((int(values["_step"]), json.loads(value)))
    return rows


def of_trackio(run: Path) -> Rows:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = [name for name in SQLiteStorage.get_runs("dgpo") if name.startswith(f"{run.name}-")]
    rows: Rows = defaultdict(list)
    for row in SQLiteStorage.get_logs("dgpo", name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                rows[key].append((row["step"], value))
    return rows


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "trackio": of_trackio}


def config_of(tracker: str, run: Path) -> dict[str, Any]:
    if tracker == "tensorboard":
        (file,) = (run / "tensorboard").glob("*/hparams.yml")
        return dict(yaml.safe_load(file.read_text()))
    if tracker == "wandb":
        config: dict[str, Any] = {}
        for record in wandb_records(run):
            updates = [*record.config.update, *record.run.config.update]
            config |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}
        return config
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = [name for name in SQLiteStorage.get_runs("dgpo") if name.startswith(f"{run.name}-")]
    return dict(SQLiteStorage.get_run_config("dgpo", name) or {})


def assert_same(told: Rows, logged: Rows) -> None:
    assert set(told) == set(logged)
    for name, values in logged.items():
        assert [step for step, _ in told[name]] == [step for step, _ in values], name
        for (_, got), (_, wanted) in zip(told[name], values, strict=True):
            assert got == pytest.approx(wanted, rel=1e-5), name  # TensorBoard keeps float32


def settings(offline: Offline, data: Path) -> KDSettings:
    return KDSettings(
        student=str(offline.student),
        teacher=str(offline.teacher),
        trajectories=str(data),
        method="seqkd",
        steps=6,
        batch_size=4,
        validation_share=0.2,
        eval_every=2,
        device="cpu",
    )


class Killed(BaseException):
    pass


def train(settings: KDSettings, folder: Path, trackers: tuple[str, ...], kill_at: int | None = None) -> list[str]:
    told: list[str] = []

    def progress(done: int, total: int, note: str = "") -> None:
        if done == kill_at:
            raise Killed

    with RunDir.open("kd", asdict(settings), out=folder) as run, tracked(run, trackers, told.append):
        run_kd(settings, run, keep=1, progress=progress)
    return told


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_has_every_row_under_its_name_also_of_a_run_that_went_on(
    tracker: str, offline: Offline, data: Path, tmp_path: Path
) -> None:
    """Killed after step 3, saved at step 2: step 3 comes twice, and the tracker shows it once."""
    pytest.importorskip(tracker)
    folder = tmp_path / f"kd-{tracker}"
    with pytest.raises(Killed):
        train(settings(offline, data), folder, (tracker,), kill_at=3)
    assert [step for step, _ in READERS[tracker](folder)["nll"]] == [1, 2, 3]
    (told,) = train(settings(offline, data), folder, (tracker,))
    assert told.startswith(f"{tracker}: ")
    logged = expected(folder)
    assert [step for step, _ in logged["nll"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in logged["eval_nll"]] == [2, 4, 6]
    seen = READERS[tracker](folder)
    # How long a step took is the one thing that differs the second time.
    timed = {name for name in logged if "second" in name}
    assert set(seen) == set(logged)
    assert_same({n: v for n, v in seen.items() if n not in timed}, {n: v for n, v in logged.items() if n not in timed})
    assert all([step for step, _ in seen[name]] == [1, 2, 3, 4, 5, 6] for name in timed)
    config = config_of(tracker, folder)
    assert (config["lr"], config["method"], config["rollout.top_k"]) == (1e-4, "seqkd", 3)


def test_both_commands_report_and_stdout_holds_the_result_alone(offline: Offline, data: Path, dgpo: Any) -> None:
    installed = [name for name in TRACKERS if find_spec(name) is not None]
    common = ["--student", str(offline.student), "--teacher", str(offline.teacher), "--device", "cpu", "--json"]
    common += ["--report-to", ",".join(installed), "--steps", "2"]
    kd = dgpo("kd", *common, "--data", str(data), "--method", "seqkd", "--batch-size", "4", "-o", "eval_every=1")
    rollout = [x for name, value in asdict(ROLLOUT).items() for x in ("-o", f"rollout.{name}={value}")]
    questions = ["--index", str(offline.index), "--data", str(offline.questions("train"))]
    rl = dgpo("rl", *common, *questions, "--method", "ppo", "--batch-size", "4", "-o", "eval_limit=2", *rollout)
    for ended in (kd, rl):
        assert ended.status == 0, ended.err
        run = Path(json.loads(ended.out)["run"])
        assert all(f"{name}: " in ended.err for name in installed)
        for name in installed:
            assert_same(READERS[name](run), expected(run))
    assert {"policy_loss", "entropy", "eval_em", "behavior_kl", "reward"} <= set(expected(run))


def test_nothing_is_said_on_stdout_when_the_process_ends_either(offline: Offline, data: Path, folder: Path) -> None:
    names = [name for name in TRACKERS if find_spec(name) is not None]
    command = ["kd", "--student", str(offline.student), "--data", str(data), "--method", "seqkd", "--steps", "1"]
    command += ["--teacher", str(offline.teacher), "--batch-size", "4", "--device", "cpu", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "dgpo_cli", *command, "--report-to", ",".join(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["steps"] == 1


def test_an_alarm_is_told_too(offline: Offline, data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    alarm = Alarm("loss blows up", "nll", 4, (3.0, 5.0), 4.0, 1.5)
    with (
        RunDir.open("kd", asdict(settings(offline, data)), out=tmp_path / "kd") as run,
        tracked(run, ("tensorboard",), str),
    ):
        run.log(4, alarm.to_json() | {"action": "warned"})
    run.log(5, {"nll": 1.0})  # nobody listens any more
    events = EventAccumulator(str(tmp_path / "kd" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("mean")] == [(4, 4.0)]
    (text,) = events.Tensors("alarm/text_summary")
    assert (text.step, text.tensor_proto.string_val[0].decode()) == (4, "loss blows up")
    assert "nll" not in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ("mlflow", "--report-to 'mlflow' is no tracker", "choose from tensorboard, wandb, trackio"),
        ("tensorboard, wandb", "--report-to wandb: the package wandb is not installed", "pip install wandb"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_named_before_anything_is_loaded(
    given: str, says: str, hint: str, dgpo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for command in ("kd", "rl"):
        ended = dgpo(command, "--student", "none", "--report-to", given)
        assert ended.status == 1
        assert ended.errors == [f"error: {says}"]
        assert f"hint: {hint}" in ended.err
        assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "0123456789" * 4}, "online"),
        ({"WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
    ids=["no key", "key", "key, offline", "disabled"],
)
def test_wandb_is_online_only_with_a_key(
    environment: dict[str, str],
    mode: str,
    offline: Offline,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb = pytest.importorskip("wandb")
    from accelerate.tracking import WandBTracker

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads the environment once
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(WandBTracker, "start", lambda self: asked.append(self.init_kwargs))
    monkeypatch.setattr(WandBTracker, "store_init_configuration", lambda self, values: None)
    monkeypatch.setattr(WandBTracker, "finish", lambda self: None)
    with (
        RunDir.open("kd", asdict(settings(offline, data)), out=tmp_path / "kd") as run,
        tracked(run, ("wandb",), str),
    ):
        pass
    wandb.teardown()
    assert [(kwargs["mode"], kwargs["name"], kwargs["resume"]) for kwargs in asked] == [(mode, "kd", "allow")]


def test_trackers_do_not_change_what_is_learned(offline: Offline, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train(settings(offline, data), tmp_path / "told", ("tensorboard",))
    train(settings(offline, data), tmp_path / "alone", ())
    told, alone = (load_file(tmp_path / name / "best/model.safetensors") for name in ("told", "alone"))
    assert all(torch.equal(told[name], alone[name]) for name in alone)
    assert not (tmp_path / "alone" / "tensorboard").exists()
