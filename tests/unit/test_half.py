"""bf16 on a CPU: chosen by processor and width, near float32, with masters and sums in float32."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.engine.base import Sampling
from dgpo_cli.engine.in_process.engine import InProcessEngine
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models import half
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.critic import Critic
from dgpo_cli.models.devices import inference_dtype
from dgpo_cli.models.half import compute_dtype, compute_in_half, pays_off
from dgpo_cli.models.lm_head import hidden_states, token_logprobs
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.models.packed import Packed
from dgpo_cli.objectives import registry
from dgpo_cli.training.batch import Sample, pack
from dgpo_cli.training.learner import Learner, Optimizer
from dgpo_cli.training.optimizer_settings import OptimizerSettings
from dgpo_cli.training.step import accumulate

CPU = torch.device("cpu")
V = 300


@pytest.fixture
def able(monkeypatch):
    monkeypatch.setattr(half, "processor_has_bf16", lambda: True)


@pytest.mark.parametrize(
    ("text", "able"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu sse avx512f avx2\nbugs\t\t: avx512_bf16\n", False),
        ("Features\t: fp asimd\n", False),
        (None, False),
    ],
)
def test_the_processor_is_asked(monkeypatch, tmp_path, text, able):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(half, "_CPUINFO", tmp_path / "cpuinfo")
    half.processor_has_bf16.cache_clear()
    assert half.processor_has_bf16() is able
    half.processor_has_bf16.cache_clear()


def test_it_is_for_wide_models_on_able_cpus_alone(able, monkeypatch):
    narrow, wide = qwen(50, hidden=256, layers=1).config, qwen(50, hidden=512, layers=1).config
    assert pays_off(CPU, wide, "auto")
    assert not pays_off(CPU, narrow, "auto") and not pays_off(CPU, wide, "float32")
    assert not pays_off(torch.device("cuda"), wide, "auto")  # there it is always so
    monkeypatch.setattr(half, "processor_has_bf16", lambda: False)
    assert not pays_off(CPU, wide, "auto")


def wide():
    """A model and the same in half; the scale of real weights."""
    model = qwen(V, hidden=512, layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.1)
    marked = copy.deepcopy(model)
    compute_in_half(marked)
    return model, marked


def sequences():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(V, (length,), generator=generator) for length in (40, 9, 9, 77)]


def test_a_pass_is_near_float32_and_its_stream_stays_in_it():
    model, marked = wide()
    packed = Packed.of(sequences(), CPU)
    with torch.no_grad():
        expected, found = hidden_states(model, packed), hidden_states(marked, packed)
        assert found.dtype == torch.float32 and not torch.equal(found, expected)
        assert float((found - expected).norm() / expected.norm()) < 0.02
        told = [
            token_logprobs(m, h, packed.input_ids, vocabulary_size=V, chunk_size=50)
            for m, h in ((model, expected), (marked, found))
        ]
    assert told[1].dtype == torch.float32 and float((told[1] - told[0]).abs().max()) < 0.1


def test_a_step_keeps_masters_and_gradients_in_float32():
    found = []
    for model in wide():
        samples = []
        for ids in sequences():
            written = torch.ones(len(ids), dtype=torch.bool)
            written[0] = False
            samples.append(Sample(ids, written, by_student=False))
        learner = Learner(
            registry.create("seqkd", {}), SimpleNamespace(vocabulary_size=V), model,
            Optimizer(model, OptimizerSettings(1e-3), 9),
        )  # fmt: skip
        sums = accumulate(learner, pack(samples, CPU), 131.0)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        learner.policy_optimizer.step("policy")
        assert {p.dtype for p in model.parameters()} == {g.dtype for g in gradients.values()} == {torch.float32}
        found.append((sums, gradients))
    (expected, exact), (near, rounded) = found
    assert near["nll"] == pytest.approx(expected["nll"], rel=2e-3) and near["nll"] != expected["nll"]
    for name, gradient in exact.items():
        assert float((rounded[name] - gradient).norm()) < 0.05 * float(gradient.norm()) + 1e-4, name


def test_rollouts_of_a_marked_model_follow_its_masters():
    codec = Codec(bpe_tokenizer(), DEFAULT)
    model, _ = wide()
    model = qwen(len(codec.tokenizer), hidden=512, layers=1)
    compute_in_half(model)
    engine = InProcessEngine(model, codec, slots=2, capacity=64)

    def write():
        slot, ids, logprobs = engine.open([5, 6, 7], Sampling(0.0, 20, ())), [5, 6, 7], []
        while events := engine.step():
            ids += events[0].token_ids
            logprobs += events[0].logprobs
        engine.close(slot)
        with torch.no_grad():
            plain = model(input_ids=torch.tensor([ids])).logits[0, 2:-1].log_softmax(-1)
        told = plain.gather(1, torch.tensor(ids[3:])[:, None])[:, 0]
        assert float((told - torch.tensor(logprobs)).abs().max()) < 0.3
        return ids

    before = write()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert write() != before


def test_copies_are_marked_and_others_are_not():
    model, marked = wide()
    assert compute_dtype(model) == torch.float32 and compute_dtype(marked) == torch.bfloat16
    assert compute_dtype(copy.deepcopy(marked)) == torch.bfloat16
    assert compute_dtype(Critic(copy.deepcopy(marked), seed=0).backbone) == torch.bfloat16
    assert "computes_in_half" not in marked.config.to_dict()


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_models_are_loaded_as_asked(able, tmp_path, precision, dtype):
    tokenizer = bpe_tokenizer()
    for name, hidden in (("wide", 512), ("narrow", 64)):
        save_model(tmp_path / name, qwen(len(tokenizer), hidden=hidden, layers=1), tokenizer, DEFAULT)
    trained = load_model(str(tmp_path / "wide"), device=CPU, precision=precision).model
    assert trained.dtype == torch.float32 and compute_dtype(trained) == dtype
    assert inference_dtype(CPU, str(tmp_path / "wide"), precision) == dtype
    small = load_model(str(tmp_path / "narrow"), device=CPU, precision=precision).model
    assert compute_dtype(small) == inference_dtype(CPU, str(tmp_path / "narrow"), precision) == torch.float32
