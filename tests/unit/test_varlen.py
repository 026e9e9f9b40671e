"""The variable-length kernel's call in every release: stand-ins on the CPU with the signatures that releases have."""

import pytest
import torch
from tests.tiny import qwen
from torch.nn.functional import scaled_dot_product_attention

from dgpo_cli.models import packed, varlen
from dgpo_cli.models.lm_head import hidden_states
from dgpo_cli.models.packed import Packed
from dgpo_cli.models.varlen import Grouping

CPU = torch.device("cpu")
LENGTHS = (9, 1, 30, 4, 4, 17)


def attention(query, key, value, boundaries, scale, window):
    parts = []
    for first, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        q, k, v = (x[first:end].transpose(0, 1) for x in (query, key, value))
        back = torch.arange(end - first)[:, None] - torch.arange(end - first)
        seen = (back >= 0) & ((back <= window[0]) | (window[0] < 0))
        assert window[1] == 0
        parts.append(
            scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True).transpose(0, 1)
        )
    return torch.cat(parts)


def torch_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None):  # fmt: skip # noqa: E501
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Expect query and key/value to have the same number of heads")
    return attention(query, key, value, cu_seq_q, scale, window_size)


def torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):  # fmt: skip # noqa: E501
    return attention(query, key, value, cu_seq_q, scale, window_size)


def one_number_of_heads(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("number of heads in key/value must be that of the query")
    return attention(query, key, value, cu_seq_q, scale, window_size)


def wrong_for_grouped_heads(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """Takes them, and pairs queries with keys of other heads."""
    key, value = (x.repeat(1, query.shape[1] // x.shape[1], 1) for x in (key, value))
    return attention(query, key, value, cu_seq_q, scale, window_size)


def before_windows(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None, scale=None):
    raise AssertionError("has no window")


KERNELS = [
    (torch_2_13, Grouping.ARGUMENT),
    (torch_2_11, Grouping.AS_THEY_ARE),
    (one_number_of_heads, Grouping.REPEATED),
    (wrong_for_grouped_heads, Grouping.REPEATED),
]


@pytest.fixture
def kernel(monkeypatch):
    """Puts a stand-in where the kernel is."""

    def put(function):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
        monkeypatch.setattr(packed, "has_kernel", lambda device: True)

    varlen.grouping.cache_clear()
    yield put
    varlen.grouping.cache_clear()


def sequences():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(50, (length,), generator=generator) for length in LENGTHS]


def passed(model):
    """Hidden states and the gradient of every parameter."""
    hidden = hidden_states(model, Packed.of(sequences(), CPU))
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))
    (hidden.float() * weights).sum().backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return hidden.float(), gradients


@pytest.mark.parametrize(("function", "way"), KERNELS, ids=[f.__name__ for f, _ in KERNELS])
def test_every_call_of_the_kernel_says_what_single_sequences_say(kernel, function, way):
    model = qwen(50).to(torch.bfloat16)
    assert model.config.num_attention_heads != model.config.num_key_value_heads
    expected, gradients = passed(model)
    kernel(function)
    found, others = passed(model)
    assert varlen.grouping(CPU, torch.bfloat16) is way
    assert float((found - expected).detach().norm()) < 0.03 * float(expected.detach().norm())  # bf16
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).norm()) < 0.1 * float(gradient.norm()) + 1e-3, name


def test_repeated_heads_are_the_grouped_ones_to_the_bit(kernel):
    kernel(torch_2_11)
    q, k, v = (varlen._waves(heads, CPU, torch.float32).detach() for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 3, 8], dtype=torch.int32)
    ways = [
        varlen._call(way, q, k, v, boundaries, 5, 0.3, (-1, 0)) for way in (Grouping.AS_THEY_ARE, Grouping.REPEATED)
    ]
    assert torch.equal(*ways)


def test_a_call_without_a_window_is_not_made(kernel, monkeypatch):
    """The module alone says nothing: a release whose call has no window leaves sequences to the other way."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for function, there in [(torch_2_13, True), (torch_2_11, True), (before_windows, False)]:
        kernel(function)
        varlen.has_kernel.cache_clear()
        assert varlen.has_kernel(torch.device("cuda")) is there
    varlen.has_kernel.cache_clear()
    assert not varlen.has_kernel(CPU)
