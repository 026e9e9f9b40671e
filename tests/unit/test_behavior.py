"""Log-probabilities of the policy that wrote, computed anew or those that the engine told."""

from dataclasses import replace

import pytest
import torch
from tests.unit.test_train_step import learner, shared_learner, trajectories

from dgpo_cli.training import signals
from dgpo_cli.training.credit import rollout_sample


def fill(made, data):
    return signals.fill(made, data, [rollout_sample(t) for t in data])


def told(data, change=0.25):
    """Trajectories with log-probabilities of their own, such that nobody could compute them."""
    return [
        replace(t, logprobs=tuple(-change * place if written else 0.0 for place, written in enumerate(t.written)))
        for t in data
    ]


@pytest.mark.parametrize("method", ["grpo", "dgpo", "shared"])
def test_the_engines_are_taken_where_it_told_all_of_them(method):
    made = shared_learner() if method == "shared" else learner(method)
    made.micro_batch_tokens = 50
    anew = fill(made, trajectories())
    made.engine_logprobs = True
    data = told(trajectories())
    passes = []
    made.student.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    taken = fill(made, data)
    assert bool(passes) == (method == "shared"), "a critic of its own needs no pass of the student"
    for episode, other, trajectory in zip(taken, anew, data, strict=True):
        assert torch.equal(episode.behavior_logprobs, torch.tensor(trajectory.logprobs))
        assert (episode.values is None) == (other.values is None)
        if other.values is not None:
            assert torch.equal(episode.values, other.values)
    one_silent = fill(made, [replace(data[0], logprobs=None), *data[1:]])
    for episode, other in zip(one_silent, anew, strict=True):
        assert torch.equal(episode.behavior_logprobs, other.behavior_logprobs)


def test_they_are_computed_anew_unless_it_is_asked_for():
    made = learner("grpo")
    for episode, other in zip(fill(made, told(trajectories())), fill(made, trajectories()), strict=True):
        assert torch.equal(episode.behavior_logprobs, other.behavior_logprobs)
