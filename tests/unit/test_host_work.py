"""What a GPU waits for: copies, questions to the device and operators, counted where there is none.

On tensors without values (`meta`) nothing can be asked: an operator that needs a value on the host raises. A norm and
an attention count there as the operators that they are made of, eight and six; a GPU has a kernel for each.
"""

from collections import Counter

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen
from tests.unit.test_train_step import learner, trajectories
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.decoder import Decoder
from dgpo_cli.engine.in_process.draw import NextTokens
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.engine.in_process.graphs import Burst
from dgpo_cli.engine.in_process.passes import Pass
from dgpo_cli.engine.in_process.weights import Weights
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.training.batch import pack
from dgpo_cli.training.credit import teacher_samples
from dgpo_cli.training.step import accumulate

META = torch.device("meta")
_VIEWS = {"view", "_unsafe_view", "slice", "select", "transpose", "t", "expand", "unsqueeze", "squeeze", "alias",
          "detach", "as_strided", "split", "split_with_sizes", "permute", "_reshape_alias", "lift_fresh"}  # fmt: skip


class Counted(TorchDispatchMode):
    """Operators that launch something, by name; `asked` and `brought` are waits and copies from the host."""

    def __init__(self):
        super().__init__()
        self.launched, self.asked, self.brought = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.asked += name in ("_local_scalar_dense", "nonzero", "equal", "masked_select")
        given = {t.device.type for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        made = {t.device.type for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)}
        self.brought += "cpu" in given and "meta" in made | given
        if name not in _VIEWS:
            self.launched[name] += 1
        return result


def decoder(layers, slots=8, capacity=128):
    made = Decoder(qwen(600, layers=layers).to(torch.bfloat16).to(META), slots, capacity)
    made.cache.make_room(slots, capacity)
    return made


def reading(layers, rows):
    """A pass over `rows` rows: some with one token, and groups with several."""
    reader = decoder(layers)
    counts = sorted([1, 1, 5, 9, 30, 31, 2, 64][:rows])
    with torch.no_grad(), Counted() as counted:
        new = Pass.of([[7] * n for n in counts], range(rows), [3] * rows, META, torch.bfloat16)
        reader.last_hidden(new)
    return counted, len(new.several)


def test_a_reading_pass_is_told_in_one_copy_and_asks_nothing():
    for rows in (3, 8):
        counted, groups = reading(2, rows)
        assert counted.brought == 1 and counted.asked == 0
        assert groups == {3: 1, 8: 4}[rows]


def test_operators_of_a_reading_pass_grow_with_layers_and_groups_alone():
    by_layers = [sum(reading(layers, 8)[0].launched.values()) for layers in (2, 3)]
    by_rows = [sum(reading(2, rows)[0].launched.values()) for rows in (3, 8)]
    assert by_layers[1] - by_layers[0] <= 45 + 4 * 20  # of a layer, and of each of its groups
    assert by_rows[1] - by_rows[0] <= 3 * (2 * 20 + 14)


@pytest.mark.parametrize("greedy", [True, False])
def test_operators_of_a_decoded_token(greedy):
    """Each is a launch where nothing was captured; a graph replays them without the host."""
    launched = []
    for layers in (2, 3):
        source = NextTokens([decoder(layers)], 600)
        burst = Burst(source, 8, 128, 4)
        with torch.no_grad(), Counted() as counted:
            burst._next(8, 32, greedy)
        assert counted.asked == counted.brought == 0
        launched.append(sum(counted.launched.values()))
    assert launched[1] - launched[0] <= 48
    assert launched[0] <= 2 * 48 + (40 if greedy else 65)


def test_masters_are_rounded_once_for_as_long_as_episodes_are_open(monkeypatch):
    codec = Codec(bpe_tokenizer(), DEFAULT)
    refreshed, asked = [], []
    refresh, places = Weights.refresh, Weights.places
    monkeypatch.setattr(Weights, "refresh", lambda self: refreshed.append(1) or refresh(self))
    monkeypatch.setattr(Weights, "places", lambda self: asked.append(1) or places(self))
    engine = InProcessEngine(qwen(len(codec.tokenizer)), codec, slots=3, capacity=100, burst=4)
    for rollouts in (1, 2):
        slots = [engine.open([5, i], Sampling(1.0, 20, (), key=str(i))) for i in range(3)]
        while engine.step():
            pass
        engine.close(slots[0])
        engine.open([5, 9], Sampling(1.0, 20, (), key="later"))
        while engine.step():
            pass
        assert len(refreshed) == rollouts and len(asked) <= rollouts
        for slot in [*slots[1:], 3 + 4 * (rollouts - 1)]:
            engine.close(slot)


@pytest.mark.parametrize("count", [7, 28])
@pytest.mark.parametrize("method", ["kd", "seqkd"])
def test_waits_of_a_micro_batch_do_not_grow_with_its_sequences(method, count):
    """Its losses and metrics are asked for together; another question is whether the teacher's numbers are finite."""
    made = learner(method)
    batch = pack(teacher_samples(trajectories(count)), made.device)
    with Counted() as counted:
        accumulate(made, batch, 100.0)
    assert counted.asked <= 2
    with Counted() as counted:
        made.policy_optimizer.step("policy")
    assert counted.asked <= 2 + len(made.policy_optimizer.parameters)  # Adam's counters, which lie on the host
