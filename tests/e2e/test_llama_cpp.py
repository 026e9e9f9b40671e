"""Exported models in llama.cpp: the tokens that the folder's model writes, and the search loop over its server.

Skipped without the package xllamacpp, a compiled llama.cpp of 34 MB: `pip install xllamacpp`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.served import Served, as_process, ask
from tests.unit.test_gguf_writing import KINDS, TEXTS, saved

from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="no llama.cpp here: pip install xllamacpp"),
]
CONTEXT = 256


@contextmanager
def llama_cpp(file: Path) -> Iterator[Served]:
    with as_process([sys.executable, "-m", "tests.llama_server", str(file), "4", str(CONTEXT)]) as made:
        yield made


def exported(dgpo: Any, model: str, *options: str) -> Path:
    ended = dgpo("export", model, "agent", "--gguf", *options)
    assert ended.status == 0, ended.err
    (file,) = Path("agent").glob("*.gguf")
    return file


def posted(server: Served, path: str, **fields: Any) -> Any:
    reply = ask(f"{server.url}{path}", json.dumps(fields).encode(), {"Content-Type": "application/json"})
    assert reply.status == 200, reply.content
    return reply.json


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_writes_the_tokens_of_the_folder(dgpo: Any, folder: Path, kind: str) -> None:
    saved(folder, kind, width=128 if kind == "qwen3" else 32)
    loaded = load_model("model", device=torch.device("cpu"))
    codec = Codec(loaded.tokenizer, loaded.protocol)
    ends = sorted(codec.eos_ids)  # not to be written here, so that there is something to compare
    prompts = [list(codec.prompt_ids(text).ids) for text in ("who built the tower", *TEXTS)]
    with llama_cpp(exported(dgpo, "model")) as server:
        for text in TEXTS:
            ids = posted(server, "/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
            assert ids == codec.text_ids(text)
        for prompt in prompts:
            expected = loaded.model.generate(
                torch.tensor([prompt]), max_new_tokens=40, do_sample=False, suppress_tokens=ends
            )
            made = posted(
                server, "/completion", prompt=prompt, n_predict=40, temperature=0, ignore_eos=True, return_tokens=True
            )
            assert made["tokens"] == expected[0, len(prompt) :].tolist()


def test_the_search_loop_over_its_server_answers_as_the_folder(
    dgpo: Any, folder: Path, offline: Any, searcher: Path
) -> None:
    (folder / "questions").mkdir()
    (folder / "questions/nq.jsonl").write_bytes(offline.questions("test").read_bytes())

    def episodes(out: str, *more: str) -> Any:
        limits = ("max_new_tokens=24", "max_observation_tokens=96", "max_tokens=200")
        ended = dgpo(
            *("eval", "--index", str(offline.index), "--bench-dir", "questions", "--bench", "nq", "--device", "cpu"),
            *("--limit", "10"),
            *(part for limit in limits for part in ("-o", f"rollout.{limit}")), *("--out", out), *more,
        )  # fmt: skip
        assert ended.status == 0, ended.err
        rows = [json.loads(line) for line in (folder / out / "nq.jsonl").read_text().splitlines()[1:]]
        return {row["key"]: (row["answer"], [call["query"] for call in row["searches"]], row["stop"]) for row in rows}

    here = episodes("here", "--model", str(searcher), "-o", "precision=float32")
    with llama_cpp(exported(dgpo, str(searcher))) as server:
        there = episodes("there", "--model", "agent", "--model-url", f"{server.url}/v1")
    assert there == here and len(here) == 10
    assert sum(len(queries) for _, queries, _ in here.values()) >= 5, "there is something to compare"
