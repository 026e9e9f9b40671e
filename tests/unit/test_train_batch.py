import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_cli.objectives.base import Signals
from dgpo_cli.training.batch import Sample, micro_batches, pack

CPU = torch.device("cpu")


@st.composite
def samples(draw):
    """Random sequences with a random written mask; the first token is never written."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        written = [False, *draw(st.lists(st.booleans(), min_size=1, max_size=12))]
        ids = draw(st.lists(st.integers(0, 9), min_size=len(written), max_size=len(written)))
        signals = Signals(advantages=torch.arange(len(ids), dtype=torch.float32) + 100 * len(made))
        weight = float(draw(st.booleans()))
        made.append(Sample(torch.tensor(ids), torch.tensor(written), kl_weight=weight, signals=signals))
    return made


@given(samples(), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_micro_batches_hold_every_trained_sample_once_within_the_budget(made, budget):
    groups = micro_batches(made, budget)
    assert sorted(i for group in groups for i in group) == [i for i, s in enumerate(made) if s.num_trained]
    for group in groups:
        assert len(group) == 1 or sum(made[i].length for i in group) <= budget
        assert len({made[i].kl_weight == 0 for i in group}) == 1


@given(samples())
@settings(max_examples=200, deadline=None)
def test_flattening_takes_the_output_before_each_written_token_and_unflattening_inverts_it(made):
    made = [s for s in made if s.num_trained]
    if not made:
        return
    batch = pack(made, CPU)
    places = torch.arange(len(batch.trained))  # each position names itself
    flat = batch.flatten(places[..., None].float()).squeeze(-1)
    starts = batch.packed.boundaries.tolist()
    expected = [starts[row] + t - 1 for row, s in enumerate(made) for t in range(len(s.written)) if s.written[t]]
    assert flat.tolist() == expected
    assert batch.token_ids.tolist() == [
        int(s.token_ids[t]) for s in made for t in range(len(s.written)) if s.written[t]
    ]
    advantages = batch.signal("advantages")
    for row, sample in zip(batch.unflatten(advantages), made, strict=True):
        torch.testing.assert_close(row, torch.where(sample.written, sample.signals.advantages, 0.0))
    for row, sample in enumerate(made):
        assert (batch.sequence_index == row).sum() == sample.num_trained


def test_what_follows_the_last_written_token_is_not_read():
    sample = Sample(torch.arange(6), torch.tensor([False, True, True, False, False, False]))
    assert sample.length == 3
    assert pack([sample], CPU).packed.input_ids.tolist() == [0, 1, 2]


def test_sequences_lie_end_to_end_and_positions_begin_again():
    short = Sample(torch.tensor([7, 7]), torch.tensor([False, True]))
    long = Sample(torch.tensor([7, 8, 7, 9]), torch.tensor([False, True, False, True]))
    batch = pack([long, short], CPU)
    assert batch.packed.input_ids.tolist() == [7, 8, 7, 9, 7, 7]
    assert batch.packed.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.packed.boundaries.tolist() == [0, 4, 6] and batch.packed.lengths == [4, 2]
    assert batch.trained.tolist() == [False, True, False, True, False, True]


def test_a_signal_that_not_every_sample_has_is_none():
    ids, written = torch.tensor([1, 2]), torch.tensor([False, True])
    one, other = Sample(ids, written), Sample(ids, written, signals=Signals(returns=torch.tensor([0.0, 7.0])))
    assert pack([one], CPU).signal("returns") is None and pack([other, one], CPU).signal("returns") is None
    assert pack([other, other], CPU).tokens(values=None, sequence_log_ratio=None).returns.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_sample_without_weight_trains_nothing(weight):
    sample = Sample(torch.tensor([1, 2, 3]), torch.tensor([False, True, True]), weight=weight)
    assert sample.num_trained == 2 * weight
