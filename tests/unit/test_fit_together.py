"""`--fit` in two processes: one size for both, which is the smallest of what fits in either."""

import sys
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from tests.e2e.test_processes import lively, work  # noqa: F401 - a fixture
from tests.e2e.test_resume import rl_settings
from tests.processes import together
from tests.unit.test_train_step import learner

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.errors import ConfigError
from dgpo_cli.models.devices import leave, world
from dgpo_cli.models.processes import ProcessFailed
from dgpo_cli.training.run import fitting, lifecycle
from dgpo_cli.training.run.fit import Memory
from dgpo_cli.training.run.fitting import fit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LENGTH, SEQUENCES = 40, 12


class Counted(Memory):
    """Memory of which a sequence of a step takes 10 MB, and a slot of the engine too."""

    room: ClassVar = {}  # sequences, by process
    size = 0

    def __post_init__(self):
        self.limit = self.limit or 10_000_000 * self.room[world().rank]

    def used(self):
        return 0

    def start(self):
        pass

    def peak(self):
        return 10_000_000 * Counted.size


def fitted(method, room, out):
    made = learner(method)
    made.world = world()
    Counted.room = room
    fitting.Memory = Counted
    accumulate, fill = fitting.largest_micro_batch.__globals__["accumulate"], fitting.fill

    def counting(given, batch, denominator):
        Counted.size = len(batch.samples)
        return accumulate(given, batch, denominator)

    def filling(engine):
        Counted.size = engine.free_slots
        return fill(engine)

    fitting.largest_micro_batch.__globals__["accumulate"], fitting.fill = counting, filling
    said = []
    with lifecycle.open_together(lambda: RunDir.open("rl", {"seed": 0}, out=out)) as run:
        found = fit(
            run,
            made,
            length=LENGTH,
            sequences=SEQUENCES,
            limit_gib=None,
            engine=lambda slots: InProcessEngine(made.student, made.codec, slots=slots, capacity=LENGTH),
            say=said.append,
        )
    leave()
    return {
        "found": (found.micro_batch_tokens, found.wave),
        "set": made.micro_batch_tokens,
        "said": said[0].split(" within")[0],
        "own": {
            what: max(a.size for w, a in found.attempts if w == what and a.fits) for what in ("wave", "micro-batch")
        },
    }


@pytest.mark.parametrize("method", ["ppo", "dgpo", "kd"])
def test_both_take_what_fits_in_the_smaller_one(tmp_path, method):
    """The search of one ends sooner than the other's: nothing that it tries may wait for the other."""
    ended = together(2, fitted, method, {0: 12, 1: 6}, tmp_path / "run", timeout=60)
    # A wave gets half: 6 and 3 slots; a step the whole of it, 12 and 6 sequences (within an eighth).
    assert [e["own"] for e in ended] == [{"wave": 6, "micro-batch": 12}, {"wave": 3, "micro-batch": 6}]
    assert all(e["found"] == (6 * LENGTH, 3) and e["set"] == 6 * LENGTH for e in ended)
    assert {e["said"] for e in ended} == {"fit: micro-batches of 240 tokens and 3 episodes at once"}


def fails(out):
    # The first does not search in vain: it hears of the other's error where both would agree.
    with pytest.raises(ConfigError if world().rank else ProcessFailed, match="do not fit into") as caught:
        fitted("ppo", {0: 12, 1: 1}, out)
    return world().fail(caught.value.message, caught.value.hint)


def test_where_one_has_no_room_all_end(tmp_path):
    told = together(2, fails, tmp_path / "run", timeout=60)
    assert told[0] is not None and "do not fit into" in told[0][0] and told[1] is None


def test_processes_of_one_machine_share_what_is_free():
    alone, shared = Memory(torch.device("cpu")), Memory(torch.device("cpu"), sharers=2)
    assert shared.limit - shared.used() == pytest.approx((alone.limit - alone.used()) / 2, rel=0.1)


@pytest.mark.slow
def test_an_rl_run_of_two_processes_fits_once_and_trains(offline, tmp_path):
    settings = replace(rl_settings(offline, "dgpo"), fit=True, steps=1)
    ended = together(2, work, "rl", settings, tmp_path / "run", timeout=60)
    assert len({e["weights"] for e in ended}) == 1
    assert (tmp_path / "run" / "fit.json").is_file()
