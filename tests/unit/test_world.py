"""What the processes of a run tell each other, with real processes."""

import math

import pytest
import torch
from tests.processes import together

from dgpo_cli.errors import TrainingError
from dgpo_cli.models import processes as module
from dgpo_cli.models.devices import training_device, world
from dgpo_cli.models.processes import ALONE, Processes, ProcessFailed


def test_shares_go_longest_first_to_whom_has_least():
    costs = [5, 1, 4, 3, 2, 2]
    # 5 | 4, then 3 to the second, 2 to the first, 2 to the first again (7 and 7, fewer items), 1 to the second
    assert Processes(0, 2).shares(costs) == [[0, 4, 5], [1, 2, 3]]
    assert [Processes(rank, 2).share(costs) for rank in (0, 1)] == Processes(0, 2).shares(costs)
    assert Processes(0, 3).shares([1.0]) == [[0], [], []]
    assert ALONE.shares(costs) == [list(range(6))]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_index_is_in_one_share(size):
    costs = [(7 * i) % 11 for i in range(40)]
    shares = Processes(0, size).shares(costs)
    assert sorted(i for share in shares for i in share) == list(range(40))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)


def exchange():
    everyone = world()
    mine = everyone.gather({"rank": everyone.rank, "pi": math.pi, "text": "é" * (1 + 1000 * everyone.rank)})
    summed = everyone.sum({"all": 1.5} | ({"second only": 2.0} if everyone.rank else {}))
    tensors = [torch.full((3,), 1.0 + everyone.rank), torch.ones(2, 2, dtype=torch.float64), torch.ones(5)]
    everyone.add_up(tensors)
    weights = [torch.arange(4.0) * (1 + everyone.rank)]
    everyone.follow_first(weights)
    return mine, summed, [t.tolist() for t in tensors], weights[0].tolist()


@pytest.mark.parametrize("bucket", [module.BUCKET, 4])
def test_two_processes_exchange(monkeypatch, bucket):
    monkeypatch.setattr(module, "BUCKET", bucket)
    results = together(2, exchange)
    assert results[0] == results[1]
    mine, summed, tensors, weights = results[0]
    assert [m["rank"] for m in mine] == [0, 1] and mine[1]["pi"] == math.pi and len(mine[1]["text"]) == 1001
    assert summed == {"all": 3.0, "second only": 2.0}
    assert tensors == [[3.0] * 3, [[2.0, 2.0], [2.0, 2.0]], [2.0] * 5]
    assert weights == [0, 1, 2, 3]


def gradients():
    everyone = world()
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    if everyone.rank == 0:
        parameters[0].grad = torch.tensor([1.0, 2.0])
    else:
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])
    everyone.add_up_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def test_a_gradient_that_one_process_lacks_is_summed_and_one_that_all_lack_stays_away():
    assert together(2, gradients) == [[[4.0, 6.0], [5.0, 6.0], None]] * 2


def failing():
    everyone = world()
    if everyone.rank == 1:
        return everyone.fail("the disk is full", "free some space")
    with pytest.raises(ProcessFailed) as caught:
        everyone.add_up([torch.ones(2)])
    return everyone.fail(caught.value.message, caught.value.hint)


def test_one_process_fails_and_the_first_tells_it():
    assert together(2, failing) == [("the disk is full", "free some space"), None]


def all_failing():
    return world().fail(f"no file {world().rank}", None)


def test_where_all_fail_one_tells():
    assert together(3, all_failing) == [("no file 0", None), None, None]


def left_behind():
    everyone = world()
    everyone.gather("here")  # nobody leaves before both are connected
    if everyone.rank == 0:
        return None
    with pytest.raises(TrainingError, match="another process of this run is gone"):
        for _ in range(2):
            everyone.gather("hello")
    return everyone.fail("something", None)


def test_a_process_that_is_alone_tells_its_own_error():
    assert together(2, left_behind) == [None, ("something", None)]


def placed():
    return str(training_device("auto"))


def test_each_process_has_a_device():
    assert together(2, placed) == ["cpu", "cpu"]
