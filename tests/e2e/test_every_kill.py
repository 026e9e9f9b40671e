"""Every long command killed before every file operation in turn, then given again: as if nothing had been.

`make test-kill` does every position of every command, `make test` a few of one. A pass that was stopped goes on where
it was, as long as the sources are the same: what it has done is in KILL_FOLDER.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.test_resume import teacher_agent
from tests.folder_contents import difference
from tests.folder_states import Store, half_written
from tests.killing import ROOT, Figures, kill_everywhere, sources
from tests.offline import ROLLOUT, Offline, make
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.core.folders import replacing
from dgpo_cli.core.run_record import read_run
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.training.teacher.distill_data import distill_data

SMALL = replace(ROLLOUT, max_new_tokens=6, wave=4)
FLAGS = [
    f"-orollout.{name}={getattr(SMALL, name)}"
    for name in (
        *("top_k", "max_turns", "max_new_tokens", "max_observation_tokens", "max_prompt_tokens", "max_tokens"),
        "wave",
    )
]
KEPT = Path(os.environ.get("KILL_FOLDER") or ROOT / ".kill").resolve() / sources()


def kill(name: str, template: Path, order: list[object], *, prepare: str = "") -> Path:
    """Every position; the figures are a line that `make test-kill` shows. The folder of an undisturbed run."""
    digest = hashlib.blake2b(repr((order, prepare)).encode(), digest_size=4).hexdigest()
    place = KEPT / "-".join((*re.findall(r"\w+", name), digest))
    place.mkdir(parents=True, exist_ok=True)
    unfinished = order[0] == "index"
    figures = kill_everywhere(template, order, half=True, unfinished=unfinished, kills=3, prepare=prepare, kept=place)
    report(name, figures)
    return place / "whole"


def report(name: str, figures: Figures) -> None:
    told = f"{figures.operations} operations, {figures.states} states, {figures.half} of them with half a file, "
    told += f"{figures.kills} real kills, {figures.threaded} operations beside another thread, "
    print(f"\nkills: {name}: {told}{figures.seconds:.0f} s, {len(figures.faults)} faults", flush=True)
    assert figures.faults == [], "\n".join(figures.faults[:20])
    assert figures.states > 0 and figures.restless == 0


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def offline() -> Offline:
    """Where the passes are kept, as records name its files."""
    folder = KEPT / "offline"
    if not folder.is_dir():
        with replacing(folder) as made:
            make(made)
    return Offline(folder, folder / "index", folder / "teacher", folder / "student")


@pytest.fixture(scope="module")
def trajectories(offline: Offline) -> Path:
    folder = KEPT / "trajectories"
    if not folder.is_dir():
        questions = read_questions(offline.questions("train"))[:12]
        with replacing(folder) as made:
            distill_data(teacher_agent(offline), questions, samples=1, keep="all", folder=made, progress=None)
    return folder / "trajectories.jsonl"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and an encoder, and nothing else."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "c.jsonl")
    make_encoder(folder / "encoder")
    return folder


def index(retriever: str) -> list[object]:
    dense = ["--encoder", "encoder", "-o", "max_length=40", "-o", "factory=IVF2,SQ8"] if retriever == "dense" else []
    return ["index", "c.jsonl", "--retriever", retriever, *dense, "-q"]


def with_another_index(corpus: Path, folder: Path) -> Path:
    """A copy of the folder with an index that can be told from the one that replaces it."""
    shutil.copytree(corpus, folder)
    build_index(folder / "c.jsonl", folder / "indexes" / "c", settings={"k1": 2.0})
    return folder


def kd(offline, trajectories) -> list[object]:
    return [
        *("kd", "--student", offline.student, "--teacher", offline.teacher, "--data", trajectories, "--lr", 0.01),
        *("--batch-size", 4, "--steps", 4, "-oeval_every=2", "-ovalidation_share=0.2", "-q"),
    ]


def rl(offline, method: str) -> list[object]:
    samples = ["-osamples=2"] if method == "grpo" else []
    return [
        *("rl", "--student", offline.student, "--teacher", offline.teacher, "--index", offline.index, "-q"),
        *("--data", offline.questions("train"), "--eval-data", offline.questions("validation"), "--method", method),
        *("--steps", 3, "--batch-size", 2, "--lr", 0.01, "-osave_every=2", "-oeval_every=1", "-oeval_limit=2"),
        # No divergence is below 0: the alarm of policies that jump rings at the second step, and the third one goes on.
        *("--on-collapse", "rollback", "-ocollapse.window=2", "-ocollapse.behavior_kl_max=-1"),
        *("-owarmup_steps=0", *samples, *FLAGS),
    ]


def test_a_sample_of_positions(corpus: Path) -> None:
    figures = kill_everywhere(corpus, index("bm25"), first=2, stride=7)
    assert figures.operations > 20, "the hook sees what is done"
    report("index bm25, a sample", figures)


@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_a_sample_of_positions_of_a_replacement(corpus: Path, tmp_path: Path, retriever: str) -> None:
    """From where the old index is about to make room to the end."""
    made = with_another_index(corpus, tmp_path / "made")
    order = [*index(retriever), "--overwrite"]
    figures = kill_everywhere(made, order, first=-7, stride=3, prepare="small_shards")
    report(f"index {retriever} --overwrite, a sample", figures)


def test_the_harness_sees_what_is_lost(corpus: Path) -> None:
    """A command that does not take away what the one before it left is caught: here of the workspace, at the end."""
    figures = kill_everywhere(corpus, index("bm25"), first=-3, stride=3, prepare="leave_leftovers")
    assert "left over: ['.dgpo/.workspace.json." in figures.faults[0]


def test_what_is_written_in_place_may_be_half_there(tmp_path: Path) -> None:
    """A row that is appended and a new file; not what a rename brought, nor what is swept by its name."""
    store, folder = Store(tmp_path / "contents"), tmp_path / "folder"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("one\n")
    before = store.take(folder)
    (folder / "rows.jsonl").write_text("one\ntwo\n")
    for name in ("fresh", "renamed", ".x.json.17.writing"):
        (folder / name).write_text("1234")
    after = store.take(folder)
    assert before is not None and after is not None and store.take(folder) == after
    found = dict(half_written(store, before, after, "renamed"))
    held = {name: store.content(state.entries[name][2]) for name, state in found.items()}
    assert held == {"rows.jsonl": b"one\ntw", "fresh": b"12"}
    store.lay_out(found["fresh"], tmp_path / "laid out")
    assert store.take(tmp_path / "laid out") == found["fresh"]
    assert store.alike(before, found["fresh"]) == "files differ: ['fresh']"


def test_log_probabilities_may_differ_in_their_last_bits_alone() -> None:
    whole = {"t.jsonl": [{"logprobs": [0.0, -1.0], "right_logprob": -1.0, "tokens": [5]}]}
    for value, differs in ((-1.000001, False), (-1.1, True)):
        for changed in ({"logprobs": [0.0, value]}, {"right_logprob": value}):
            assert bool(difference(whole, {"t.jsonl": [whole["t.jsonl"][0] | changed]})) is differs
    assert difference(whole, {"t.jsonl": [whole["t.jsonl"][0] | {"tokens": [6]}]})
    # Then digests of runs over them differ too, and only then.
    last_bits, run = (
        {"t.jsonl": [whole["t.jsonl"][0] | {"right_logprob": -1.000001}]},
        {"digest": "a", "inputs": {"t": "x"}, "steps": 1},
    )
    assert (
        difference(whole | {"run.json": run}, last_bits | {"run.json": run | {"digest": "b", "inputs": {"t": "y"}}})
        == ""
    )
    assert difference(whole | {"run.json": run}, last_bits | {"run.json": run | {"digest": "b", "steps": 2}})
    assert difference(whole | {"run.json": run}, whole | {"run.json": run | {"digest": "b"}})


@pytest.mark.kill
@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_index(corpus: Path, retriever: str) -> None:
    kill(f"index {retriever}", corpus, index(retriever), prepare="small_shards")


@pytest.mark.kill
@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_index_overwrite(corpus: Path, tmp_path: Path, retriever: str) -> None:
    """The old index is another one, so that each may be told from the other; one of them is there at any moment."""
    made = with_another_index(corpus, tmp_path / "made")
    kill(f"index {retriever} --overwrite", made, [*index(retriever), "--overwrite"], prepare="small_shards")


@pytest.mark.kill
def test_kd(offline, trajectories, empty: Path) -> None:
    kill("kd", empty, kd(offline, trajectories))


@pytest.mark.kill
@pytest.mark.parametrize("method", ["dgpo", "ppo", "grpo"])
def test_rl(offline, empty: Path, method: str) -> None:
    whole = kill(f"rl {method}, rollback", empty, rl(offline, method))
    assert read_run(whole / "runs" / "rl-0001")["result"]["rollbacks"] == 1


@pytest.mark.kill
def test_distill_data(offline, empty: Path) -> None:
    order = [
        *("distill-data", "--teacher", offline.teacher, "--index", offline.index, "--keep", "all", "--limit", 10),
        *("--data", offline.questions("train"), "-q", *FLAGS),
    ]
    kill("distill-data", empty, order)


@pytest.mark.kill
@pytest.mark.parametrize("out", [[], ["--out", "k1"]], ids=["runs", "out"])
def test_eval(offline, empty: Path, out: list[str]) -> None:
    order = [
        *("eval", "--model", offline.teacher, "--index", offline.index, "--bench", "tinyworld", "--limit", 6, "-q"),
        *("--bench-dir", offline.folder / "world", "--batch-size", 2, "-k", 2, "--max-searches", 2, *out),
    ]
    kill(f"eval {' '.join(out)}".strip(), empty, order)


@pytest.mark.kill
def test_quickstart(empty: Path) -> None:
    kill("quickstart", empty, ["quickstart", "-q"], prepare="small_quickstart")
