"""The adapter of vLLM against a double with the arguments and fields of vLLM 0.33 that it uses; vLLM is not run."""

import importlib.machinery
import json
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
from tests.tiny import bpe_tokenizer

from dgpo_cli.engine.base import Sampling, TurnEnd
from dgpo_cli.engine.turnwise.engine import TurnwiseEngine
from dgpo_cli.engine.turnwise.vllm import VLLMWriter, require_vllm
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.tags import DEFAULT, TAGS, TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer
from dgpo_cli.training.teacher.trajectory_files import read_trajectories

STOP = Sampling(temperature=1.0, max_new_tokens=40, stop=TAGS.stops, seed=3)


@dataclass
class SamplingParams:
    temperature: float
    seed: int
    stop: list
    include_stop_str_in_output: bool
    max_tokens: int
    logprobs: int


@pytest.fixture
def vllm(monkeypatch):
    """A module `vllm` whose model writes `module.write(text)`; it keeps what it was asked."""
    module = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.made, module.calls, module.codec, module.write = [], [], None, None

    class LLM:
        def __init__(
            self, model, *, max_model_len, dtype, seed, trust_remote_code, enable_prefix_caching, logprobs_mode
        ):
            module.made.append((model, max_model_len, dtype, seed, trust_remote_code, enable_prefix_caching))
            assert logprobs_mode == "processed_logprobs"

        def generate(self, prompts, sampling_params, *, use_tqdm):
            assert use_tqdm is False
            module.calls.append((prompts, sampling_params))
            return [self._output(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

        def _output(self, prompt, parameters):
            codec, ids = module.codec, []
            for token in codec.text_ids(module.write(codec.decode(prompt))):
                ids.append(token)
                if any(stop in codec.decode(ids) for stop in parameters.stop):
                    break
            else:
                ids.append(codec.tokenizer.eos_token_id)
            reason = "stop" if len(ids) <= parameters.max_tokens else "length"
            ids = ids[: parameters.max_tokens]
            logprobs = [{token: SimpleNamespace(logprob=-0.25 * place)} for place, token in enumerate(ids)]
            completion = SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=reason)
            return SimpleNamespace(outputs=[completion])

    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_turns_that_wait_are_written_in_one_call(vllm):
    codec = vllm.codec = Codec(bpe_tokenizer(), DEFAULT)
    vllm.write = lambda text: "<search> a</search>\n\nmore" if text == "one" else "word " * 100
    engine = TurnwiseEngine(VLLMWriter("folder", capacity=64, dtype="bfloat16", seed=3), codec, capacity=64)
    assert vllm.made == [("folder", 64, "bfloat16", 3, False, True)]
    first, second = engine.open(codec.text_ids("one"), STOP), engine.open(codec.text_ids("two"), STOP)
    events = engine.step()
    assert len(vllm.calls) == 1 and len(vllm.calls[0][0]) == 2
    texts = {slot: codec.decode(next(e.token_ids for e in events if e.slot == slot)) for slot in (first, second)}
    assert texts[first].rstrip() == "<search> a</search>"
    ends = [event.end for event in events if event.end is not None]
    assert ends == [TurnEnd.STOP, TurnEnd.LENGTH]
    assert next(e.logprobs for e in events if e.slot == first)[:3] == [0.0, -0.25, -0.5]
    asked = vllm.calls[0][1][0]
    assert (asked.temperature, asked.max_tokens, asked.stop, asked.logprobs) == (
        1.0,
        40,
        list(TAGS.stops),
        0,
    )
    assert asked.include_stop_str_in_output and 0 <= asked.seed < 2**31
    engine.extend(first, codec.text_ids("read"))
    engine.step()
    (prompts, _) = vllm.calls[1]
    written = next(event.token_ids for event in events if event.slot == first)
    assert prompts == [{"prompt_token_ids": [*codec.text_ids("one"), *written, *codec.text_ids("read")]}]


def story(prompt):
    return "<answer>nothing</answer>" if "</information>" in prompt else f"<search>{prompt.strip()}</search>"


def test_distill_data_and_eval_use_it(vllm, dgpo, folder, offline):
    vllm.codec, vllm.write = Codec(load_tokenizer(str(offline.teacher)), TINYWORLD), story
    common = ("--index", str(offline.index), "--engine", "vllm", "--json", "--limit", "5")
    made = dgpo("distill-data", "--teacher", str(offline.teacher), "--data", str(offline.questions("train")), *common)
    assert made.status == 0, made.err
    assert json.loads(made.out)["episodes"] == 5
    model, capacity, dtype, seed, *_ = vllm.made[0]
    assert (model, dtype, seed) == (str(offline.teacher), "float32", 0) and capacity > 100
    episodes = [
        json.loads(line) for line in (folder / "runs/distill-data-0001/episodes.jsonl").read_text().splitlines()
    ]
    assert all(row["answer"] == "nothing" and -0.25 in row["logprobs"] for row in episodes[1:])
    assert read_trajectories(folder / "runs/distill-data-0001").tokenizer == vllm.codec.digest
    bench = ("--bench", "tinyworld", "--bench-dir", str(offline.folder / "world"))
    measured = dgpo("eval", "--model", str(offline.teacher), *bench, *common)
    assert measured.status == 0, measured.err
    assert json.loads(measured.out)["benchmarks"]["tinyworld"]["n"] == 5
    assert len(vllm.made) == 2
    header = json.loads((folder / "runs/eval-0001/tinyworld.jsonl").read_text().splitlines()[0])
    assert header["settings"]["engine"] == "vllm"


def test_without_vllm_there_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vLLM is not installed here") as raised:
        require_vllm()
    assert "--teacher-url" in raised.value.hint
