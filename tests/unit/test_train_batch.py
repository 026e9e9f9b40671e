import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_cli.train.batch import Sample, micro_batches, pad

CPU = torch.device("cpu")


@st.composite
def samples(draw):
    """Random sequences with a random written mask; the first token is never written."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        written = [False, *draw(st.lists(st.booleans(), min_size=1, max_size=12))]
        ids = draw(st.lists(st.integers(0, 9), min_size=len(written), max_size=len(written)))
        sample = Sample(torch.tensor(ids), torch.tensor(written), kl_weight=float(draw(st.booleans())))
        sample.fields["advantages"] = torch.arange(len(ids), dtype=torch.float32) + 100 * len(made)
        made.append(sample)
    return made


@given(samples(), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_micro_batches_hold_every_trained_sample_once_within_the_budget(made, budget):
    groups = micro_batches(made, budget)
    assert sorted(i for group in groups for i in group) == [i for i, s in enumerate(made) if s.num_trained]
    for group in groups:
        longest = max(made[i].length for i in group)
        assert len(group) == 1 or longest * len(group) <= budget
        assert len({made[i].kl_weight == 0 for i in group}) == 1


@given(samples())
@settings(max_examples=200, deadline=None)
def test_flattening_takes_the_output_before_each_written_token_and_unflattening_inverts_it(made):
    made = [s for s in made if s.num_trained]
    if not made:
        return
    batch = pad(made, 0, CPU)
    places = torch.arange(batch.input_ids.numel()).reshape(batch.input_ids.shape)  # each position names itself
    flat = batch.flatten(places[..., None].float()).squeeze(-1)
    width = batch.input_ids.shape[1]
    expected = [row * width + t - 1 for row, s in enumerate(made) for t in range(len(s.written)) if s.written[t]]
    assert flat.tolist() == expected
    assert batch.token_ids.tolist() == [
        int(s.token_ids[t]) for s in made for t in range(len(s.written)) if s.written[t]
    ]
    advantages = batch.field("advantages")
    for row, sample in zip(batch.unflatten(advantages), made, strict=True):
        torch.testing.assert_close(row, torch.where(sample.written, sample.fields["advantages"], 0.0))
    for row, sample in enumerate(made):
        assert (batch.sequence_index == row).sum() == sample.num_trained


def test_what_follows_the_last_written_token_is_not_read():
    sample = Sample(torch.arange(6), torch.tensor([False, True, True, False, False, False]))
    assert sample.length == 3
    assert pad([sample], 9, CPU).input_ids.tolist() == [[0, 1, 2]]


def test_padding_is_masked_by_length_not_by_id():
    short = Sample(torch.tensor([7, 7]), torch.tensor([False, True]))
    long = Sample(torch.tensor([7, 7, 7, 7]), torch.tensor([False, True, False, True]))
    batch = pad([long, short], 7, CPU)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.trained.sum() == 3


def test_a_missing_field_is_none():
    assert pad([Sample(torch.tensor([1, 2]), torch.tensor([False, True]))], 0, CPU).field("returns") is None


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_sample_without_weight_trains_nothing(weight):
    sample = Sample(torch.tensor([1, 2, 3]), torch.tensor([False, True, True]), weight=weight)
    assert sample.num_trained == 2 * weight
