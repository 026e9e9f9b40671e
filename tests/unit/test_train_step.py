"""One optimizer step against the same quantities computed naively, all logits at once."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, Score, StopReason
from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.errors import TrainingError
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.critic import Critic, SharedCritic
from dgpo_cli.objectives import registry
from dgpo_cli.objectives.base import SIGNALS, Signals
from dgpo_cli.training import checkpoint
from dgpo_cli.training.batch import Sample
from dgpo_cli.training.credit import samples_of, student_samples, teacher_samples
from dgpo_cli.training.learner import Learner, Optimizer, enable_gradient_checkpointing
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.source import Sequences
from dgpo_cli.training.step import optimizer_step

CODEC = Codec(bpe_tokenizer(), DEFAULT)
V = CODEC.vocabulary_size


def learner(method="kd", options=None, **settings):
    student, teacher = qwen(V + 5, seed=1), qwen(V + 9, seed=2)  # vocabularies padded to different widths
    objective = registry.create(method, options or {})
    made = Learner(
        objective=objective,
        codec=CODEC,
        student=student,
        policy_optimizer=Optimizer(student, OptimizerSettings(1e-3), 10),
        teacher=teacher,
        **settings,
    )
    if method in ("ppo", "dgpo", "grpo"):
        made.reference = copy.deepcopy(student)
    if method in ("ppo", "dgpo"):
        made.critic = Critic(copy.deepcopy(student), seed=3)
        made.value_optimizer = Optimizer(made.critic, OptimizerSettings(1e-2), 10)
    return made


def trajectories(count=7, seed=0):
    rng = random.Random(seed)
    made = []
    for i in range(count):
        length = rng.randrange(6, 40)
        written = [False, False] + [rng.random() < 0.5 for _ in range(length - 3)] + [True]
        made.append(
            Trajectory(
                question=Question(f"q{i}", "?", ("x",), "set"),
                token_ids=tuple(rng.randrange(V) for _ in range(length)),
                written=tuple(written),
                logprobs=None,
                searches=(),
                stop=StopReason.ANSWERED,
                answer="x",
                score=Score(float(i % 3 == 0), i % 3 == 0, {"em": float(i % 3 == 0)}),
            )
        )
    return made


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def step_gradients(made, samples, monkeypatch):
    """Gradients of a step before clipping and updating."""
    monkeypatch.setattr(Optimizer, "step", lambda self, what: {})
    metrics = optimizer_step(made, samples)
    critic = gradients(made.critic) if made.critic is not None else {}
    return gradients(made.student), critic, metrics


def naive_kd(made, data):
    total, count = 0.0, 0
    for t in data:
        ids = torch.tensor([t.token_ids])
        logp = made.student(input_ids=ids).logits[0, :-1, :V].log_softmax(-1)
        with torch.no_grad():
            logt = made.teacher(input_ids=ids).logits[0, :-1, :V].log_softmax(-1)
        keep = torch.tensor(t.written[1:])
        nll = -logp.gather(1, ids[0, 1:, None]).squeeze(1)
        kl = (logt.exp() * (logt - logp)).sum(-1)
        total, count = total + ((nll + kl) * keep).sum(), count + int(keep.sum())
    loss = total / count
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize(("budget", "chunk"), [(10_000, 1_000), (60, 1_000), (10_000, 3), (1, 1)])
def test_kd_gradient_equals_the_naive_one_however_the_step_is_split(budget, chunk, monkeypatch):
    data = trajectories()
    reference = learner()
    loss = naive_kd(reference, data)
    expected = gradients(reference.student)
    made = learner(micro_batch_tokens=budget, chunk_tokens=chunk)
    found, _, metrics = step_gradients(made, teacher_samples(data), monkeypatch)
    assert metrics["policy_loss"] == pytest.approx(loss, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["k1-reward", "full-loss"])
def test_dgpo_step_does_not_depend_on_how_it_is_split(form, monkeypatch):
    results = []
    for budget, chunk in ((10_000, 1_000), (50, 4)):
        made = learner("dgpo", {"kl_form": form, "kl_coef": 0.5}, micro_batch_tokens=budget, chunk_tokens=chunk)
        samples, _ = student_samples(made, trajectories())
        results.append(step_gradients(made, samples, monkeypatch))
    for first, second in zip(results[0][:2], results[1][:2], strict=True):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=2e-3, atol=1e-6)
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-3, abs=1e-6)


def test_the_teacher_reads_only_wrong_episodes(monkeypatch):
    made = learner("dgpo", {"kl_form": "full-loss", "kl_coef": 0.5})
    data = trajectories()
    samples, _ = student_samples(made, data)
    assert [s.kl_weight for s in samples] == [0.0 if t.score.correct else 0.5 for t in data]
    read = []
    decoder = made.teacher.get_decoder()
    decoder.register_forward_pre_hook(lambda m, a, k: read.extend(k["lengths"]), with_kwargs=True)
    step_gradients(made, samples, monkeypatch)
    assert sorted(read) == sorted(s.length for s, t in zip(samples, data, strict=True) if not t.score.correct)


@pytest.mark.parametrize("method", ["ppo", "dgpo"])
def test_tokens_that_no_model_wrote_carry_nothing(method, monkeypatch):
    """Advantages, returns, values and log-probabilities of read tokens may be anything."""
    results = []
    for noise in (0.0, 1e3):
        made = learner(method, {"kl_coef": 0.1})
        samples, _ = student_samples(made, trajectories())
        noisy = lambda sample, row: None if row is None else torch.where(sample.written, row, noise)  # noqa: E731, B023
        samples = [
            replace(s, signals=Signals(**{name: noisy(s, getattr(s.signals, name)) for name in SIGNALS}))
            for s in samples
        ]
        results.append(step_gradients(made, samples, monkeypatch)[:2])
    for first, second in zip(*results, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name])


def test_the_first_ratio_is_one_and_advantages_are_whitened_over_written_tokens(monkeypatch):
    made = learner("ppo", {"kl_coef": 0.1})
    samples, metrics = student_samples(made, trajectories())
    advantages = torch.cat([s.signals.advantages[s.written] for s in samples])
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.var()) == pytest.approx(1, rel=1e-4)
    _, _, logged = step_gradients(made, samples, monkeypatch)
    assert logged["behavior_kl"] == pytest.approx(0, abs=1e-5) and logged["clip_fraction"] == 0
    assert metrics["em"] == pytest.approx(3 / 7)


def test_a_failed_search_trains_nothing(monkeypatch):
    data = trajectories()
    broken = [
        Trajectory(
            **{
                f: getattr(t, f)
                for f in ("question", "token_ids", "written", "logprobs", "searches", "answer", "score")
            },
            stop=StopReason.SEARCH_FAILED,
        )
        for t in data[:2]
    ]
    kept, mixed = learner("ppo", {"kl_coef": 0.0}), learner("ppo", {"kl_coef": 0.0})
    without = step_gradients(kept, student_samples(kept, data[2:])[0], monkeypatch)
    within = step_gradients(mixed, student_samples(mixed, broken + data[2:])[0], monkeypatch)
    for name in without[0]:
        torch.testing.assert_close(without[0][name], within[0][name], rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_not_finite_moves_no_weight():
    made = learner("seqkd")
    before = {n: p.detach().clone() for n, p in made.student.named_parameters()}
    with torch.no_grad():
        made.student.model.norm.weight.fill_(float("nan"))
    before["model.norm.weight"] = made.student.model.norm.weight.detach().clone()
    with pytest.raises(TrainingError, match="policy_loss is nan"):
        optimizer_step(made, teacher_samples(trajectories()))
    for name, parameter in made.student.named_parameters():
        assert torch.equal(parameter, before[name]) or name == "model.norm.weight"
        assert parameter.grad is None


def test_training_brings_the_student_to_the_teacher():
    made = learner("kd", {"ce_weight": 0.0})
    made.policy_optimizer = Optimizer(made.student, OptimizerSettings(1e-2, warmup_steps=5), 200)
    samples = teacher_samples(trajectories(4))
    first = optimizer_step(made, samples)["forward_kl"]
    for _ in range(80):
        last = optimizer_step(made, samples)["forward_kl"]
    assert last < 0.05 * first


def test_an_empty_step_does_nothing():
    assert optimizer_step(learner("seqkd"), [Sample(torch.tensor([1, 2]), torch.tensor([False, False]))]) == {}


@pytest.mark.parametrize(
    ("schedule", "update", "expected"),
    [
        ("constant", 0, 0.25),
        ("constant", 3, 1.0),
        ("constant", 9, 1.0),
        ("linear", 4, 1.0),
        ("linear", 7, 0.5),
        ("cosine", 4, 1.0),
        ("cosine", 7, 0.5),
    ],
)
def test_learning_rate_schedules(schedule, update, expected):
    settings = OptimizerSettings(1.0, warmup_steps=4, schedule=schedule)
    assert settings.lr_at(update, 10) == pytest.approx(expected)


def test_a_failed_search_is_no_measure_of_its_group():
    made = learner("grpo", {"kl_coef": 0.0, "variant": "dr_grpo"})
    data = [replace(t, question=trajectories()[0].question) for t in trajectories(3)]  # right, wrong, wrong
    data[2] = replace(data[2], stop=StopReason.SEARCH_FAILED)
    samples, _ = student_samples(made, data)
    found = [sample.signals.advantages[sample.written].unique().tolist() for sample in samples]
    assert found == [[0.5], [-0.5], [0.0]] and [sample.weight for sample in samples] == [1, 1, 0]


@pytest.mark.parametrize(("budget", "chunk"), [(10_000, 1_000), (10_000, 3), (50, 4)])
def test_gspo_takes_the_ratio_over_the_whole_sequence_however_it_is_split(budget, chunk, monkeypatch):
    """Against the formula on whole sequences, with a policy that has moved since it wrote them."""
    data = [replace(t, question=trajectories()[0].question) for t in trajectories()]
    options = {"variant": "gspo", "clip": 0.9, "clip_high": 9.0, "entropy_coef": 0.0}
    made = learner("grpo", options, micro_batch_tokens=budget, chunk_tokens=chunk)
    samples, _ = student_samples(made, data)
    shift = [
        0.2 * torch.randn(len(s.token_ids), generator=torch.Generator().manual_seed(i)) for i, s in enumerate(samples)
    ]
    old = [s.signals.behavior_logprobs for s in samples]
    moved = [torch.where(s.written, row + c, 0.0) for s, row, c in zip(samples, old, shift, strict=True)]
    samples = [
        replace(s, signals=replace(s.signals, behavior_logprobs=row)) for s, row in zip(samples, moved, strict=True)
    ]
    total = 0.0
    for t, sample in zip(data, samples, strict=True):
        ids, keep = torch.tensor([t.token_ids]), torch.tensor(t.written[1:])
        logp = made.student(input_ids=ids).logits[0, :-1, :V].log_softmax(-1)
        own = logp.gather(1, ids[0, 1:, None]).squeeze(1)[keep]
        log_ratio = (own - sample.signals.behavior_logprobs[1:][keep]).mean()
        total = total - sample.signals.advantages[sample.written][0] * log_ratio.exp()
    (total / len(data)).backward()
    expected = gradients(made.student)
    made.student.zero_grad()
    found, _, _ = step_gradients(made, samples, monkeypatch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=1e-6)


def test_dr_grpo_divides_by_sequences_of_constant_length(monkeypatch):
    data = [replace(t, question=trajectories()[0].question) for t in trajectories()]
    found = []
    for length in (100, 400):
        made = learner("grpo", {"variant": "dr_grpo", "constant_length": length, "entropy_coef": 0.0})
        found.append(step_gradients(made, student_samples(made, data)[0], monkeypatch)[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, 4 * found[1][name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["gkd", "distillm"])
def test_what_the_student_wrote_is_trained_beside_the_teachers_text(method, monkeypatch):
    """Who wrote a sequence does not change its divergence: only a likelihood term would tell them apart."""
    made, other = learner(method), learner(method)
    data = trajectories()
    mixed, metrics = samples_of(made, Sequences(by_teacher=data[:4], by_student=data[4:]))
    assert metrics["student_share"] == pytest.approx(3 / 7) and "em" in metrics
    assert [s.by_student for s in mixed] == [False] * 4 + [True] * 3
    first = step_gradients(made, mixed, monkeypatch)[0]
    second = step_gradients(other, teacher_samples(data), monkeypatch)[0]
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-7)


def test_checkpointing_changes_no_gradient_and_leaves_rollouts_their_cache(monkeypatch):
    results = []
    for checkpointed in (False, True):
        made = learner("dgpo", {"kl_coef": 0.1})
        if checkpointed:
            enable_gradient_checkpointing(made.student)
            enable_gradient_checkpointing(made.critic.backbone)
        forwards = []
        made.student.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=forwards: seen.append(1))
        samples, _ = student_samples(made, trajectories())
        before = len(forwards)
        student, critic, _ = step_gradients(made, samples, monkeypatch)
        results.append((student, critic, len(forwards) - before))
        # In training mode a checkpointed layer would drop the key-value cache of the engine.
        assert not made.student.training and not made.critic.backbone.training
        engine = InProcessEngine(made.student, CODEC, slots=1, capacity=64)
        engine.open([1, 2, 3], Sampling(temperature=0.0, max_new_tokens=4))
        results[-1] += ([i for _ in range(4) for event in engine.step() for i in event.token_ids],)
    (plain, plain_critic, once, text), (again, again_critic, twice, same_text) = results
    assert twice == 2 * once and text == same_text
    for first, second in ((plain, again), (plain_critic, again_critic)):
        assert first.keys() == second.keys()
        for name, gradient in first.items():
            torch.testing.assert_close(second[name], gradient)


def shared_learner(**settings):
    made = learner("ppo", {"kl_coef": 0.1}, **settings)
    made.critic = SharedCritic(made.student, seed=3)
    made.value_optimizer = Optimizer(made.critic, OptimizerSettings(1e-2), 10)
    return made


def test_a_shared_critic_leaves_the_policy_its_own_gradient(monkeypatch):
    """The student's gradient is what it is where no value is trained; the head's is that of its formula."""
    made = shared_learner()
    samples, _ = student_samples(made, trajectories())
    student, head, metrics = step_gradients(made, samples, monkeypatch)
    assert head.keys() == {"head.weight", "head.bias"} and metrics["value_loss"] > 0
    with monkeypatch.context() as patch:
        clipped = "dgpo_cli.objectives.ppo.clipped_value_loss"
        patch.setattr(clipped, lambda values, *_: 0.0 * values)
        other = shared_learner()
        alone, _, _ = step_gradients(other, samples, monkeypatch)
    for name, gradient in student.items():
        torch.testing.assert_close(gradient, alone[name], rtol=0, atol=0)
    total = torch.zeros(32)
    count = sum(s.num_trained for s in samples)
    for sample in samples:
        ids = sample.token_ids[None, : sample.length]
        with torch.no_grad():
            hidden = made.student.model(input_ids=ids).last_hidden_state[0]
        places = sample.written.nonzero()[:, 0]
        error = made.critic(hidden[places - 1]).detach() - sample.signals.returns[places]
        total += (error[:, None] * hidden[places - 1]).sum(0) / count
    torch.testing.assert_close(head["head.weight"][0], total, rtol=1e-3, atol=1e-6)


def test_values_of_a_shared_critic_come_with_the_log_probabilities():
    made = shared_learner()
    read = []
    hook = lambda m, a, k: read.extend(k["lengths"])  # noqa: E731
    handle = made.student.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    samples, _ = student_samples(made, trajectories())
    handle.remove()
    assert sorted(read) == sorted(s.length for s in samples)  # every sequence was read once
    sample = samples[0]
    with torch.no_grad():
        hidden = made.student.model(input_ids=sample.token_ids[None]).last_hidden_state[0]
    places = sample.written.nonzero()[:, 0]
    expected = made.critic(hidden[places - 1])
    torch.testing.assert_close(sample.signals.old_values[places], expected, rtol=1e-4, atol=1e-6)


def test_a_run_with_a_shared_critic_and_8_bit_moments_resumes_exactly(tmp_path):
    def fresh():
        made = shared_learner()
        made.policy_optimizer = Optimizer(made.student, OptimizerSettings(1e-3, "adamw-8bit"), 10)
        made.value_optimizer = Optimizer(made.critic, OptimizerSettings(1e-2, "adamw-8bit"), 10)
        return made

    def step(made, seed):
        optimizer_step(made, student_samples(made, trajectories(seed=seed))[0])

    straight, first, second = fresh(), fresh(), fresh()
    for seed in (0, 1):
        step(straight, seed)
    step(first, 0)
    checkpoint.save(tmp_path, first, 1, {})
    assert checkpoint.load_latest(tmp_path, second) == (1, {})
    step(second, 1)
    for module, other in ((straight.student, second.student), (straight.critic, second.critic)):
        for name, weight in module.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name]), name
