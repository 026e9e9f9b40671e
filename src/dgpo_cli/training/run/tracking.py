"""A run's metrics in experiment trackers too, through accelerate's: TensorBoard, Weights & Biases, Trackio.

Everything has the name that it has in metrics.jsonl. A resumed run goes on in the tracker's run: TensorBoard hides
what was logged beyond the saved state, the others keep it, and steps that they have are not sent to them again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dgpo_cli.core.run_config import read_config
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Started = tuple["GeneralTracker", str]  # and where it can be seen
TRACKERS = ("tensorboard", "wandb", "trackio")  # each is the name of its package
PROJECT = "dgpo"


def parse_trackers(names: str | None) -> tuple[str, ...]:
    """Names, comma-separated. Raises ConfigError for one that is unknown or not installed."""
    chosen = tuple(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))
    for name in chosen:
        if name not in TRACKERS:
            raise ConfigError(f"--report-to {name!r} is no tracker", hint=f"choose from {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: the package {name} is not installed", hint=f"pip install {name}")
    return chosen


@contextmanager
def tracked(run: RunDir, names: tuple[str, ...], say: Callable[[str], None]) -> Iterator[None]:
    """Send what `run` logs while this is open to the trackers as well; `say` gets a line on where each can be seen.

    Raises ConfigError where one of them cannot start.
    """
    if not names:
        yield
        return
    from dgpo_cli.models.devices import training_device

    training_device()  # accelerate's trackers ask its state which of several processes this is
    config = _flat(read_config(run.path))
    sent = {_row_key(row["step"], row) for row in run.metrics()} if run.resumed else set()
    trackers: list[GeneralTracker] = []

    def report(step: int, row: Mapping[str, Any]) -> None:
        values = {name: value for name, value in row.items() if isinstance(value, int | float | str)}
        for tracker in trackers:
            if tracker.name == "tensorboard" or _row_key(step, row) not in sent:
                tracker.log(values, step=step)

    try:
        for name in names:
            with redirect_stdout(io.StringIO()):  # stdout is for results, and trackio prints to it
                tracker, place = _STARTS[name](run)
                trackers.append(tracker)
                if name != "tensorboard" or not run.resumed:  # that one would get a second table of settings
                    tracker.store_init_configuration(config)
            say(f"{name}: {place}")
        run.listener = report
        yield
    finally:
        run.listener = None
        with redirect_stdout(io.StringIO()):
            for tracker in trackers:
                tracker.finish()


def _start_tensorboard(run: RunDir) -> Started:
    from accelerate.tracking import TensorBoardTracker

    from dgpo_cli.training import checkpoint

    states = checkpoint.list_states(run.path / "state")
    saved = int(states[-1].name.removeprefix("step-")) if states else -1
    tracker = TensorBoardTracker("tensorboard", run.path, purge_step=saved + 1 if run.resumed else None)
    tracker.start()
    return tracker, f"tensorboard --logdir {run.path.parent}"


def _start_wandb(run: RunDir) -> Started:
    """Offline where there is no key; WANDB_MODE and WANDB_PROJECT count as ever."""
    import requests
    import wandb
    from accelerate.tracking import WandBTracker

    known = wandb.setup().settings
    has_key = known.api_key or known.identity_token_file or requests.utils.get_netrc_auth(known.base_url)
    mode = known.mode if has_key or known.mode != "online" else "offline"
    project = known.project or PROJECT
    tracker = WandBTracker(
        project,
        name=run.path.name,
        id=_identity_of(run),
        dir=run.path,
        mode=mode,
        resume="allow",
        settings=wandb.Settings(console="off", quiet=True),
    )
    try:
        tracker.start()
    except wandb.Error as error:
        raise ConfigError(
            f"wandb cannot start: {error}", hint="WANDB_MODE=offline keeps the run on this machine"
        ) from error
    if mode == "online":
        return tracker, f"{known.base_url}, project {project}, run {run.path.name}"
    return tracker, f"{mode}; `wandb sync {run.path}/wandb/offline-run-*` sends the run"


def _start_trackio(run: RunDir) -> Started:
    """In its local database, unless TRACKIO_SPACE_ID names another place."""
    import trackio
    from accelerate.tracking import TrackioTracker, on_main_process

    class Tracker(TrackioTracker):  # type: ignore[misc]
        @on_main_process  # type: ignore[untyped-decorator]
        def finish(self) -> None:
            trackio.finish()  # a run that ends by its own `finish` is ended, and says so on stdout, once more at exit

    tracker = Tracker(
        PROJECT,
        name=f"{run.path.name}-{_identity_of(run)}",  # its runs are distinguished by nothing else
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    tracker.start()
    return tracker, f"trackio show --project {PROJECT}"


_STARTS: dict[str, Callable[[RunDir], Started]] = {
    "tensorboard": _start_tensorboard,
    "wandb": _start_wandb,
    "trackio": _start_trackio,
}


def _identity_of(run: RunDir) -> str:
    """The same whenever the run goes on, another one for another run of the same name."""
    record = run.record
    return hashlib.sha256(f"{run.path.name} {record['created']} {record['digest']}".encode()).hexdigest()[:12]


def _row_key(step: int, row: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """A step is logged, then its evaluation, then alarms: each has other names."""
    return step, frozenset(row) - {"step"}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names; trackers know no tables and no lists."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str) else str(value)
    return flat
