"""What cannot work is refused before a model is loaded and before a folder is made, by --dry-run and the run alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.offline import write_one_trajectory

from dgpo_cli.core import extras, machine
from dgpo_cli.core.records import write_jsonl_atomic
from dgpo_cli.core.run_dir import RunDir

RL = "rl --student {student} --teacher {teacher} --index {index} --data {train} --device cpu --steps 1 --batch-size 4 "
KD = "kd --student {student} --teacher {teacher} --data {trajectories} --device cpu --steps 1 "
OPD = KD + "--method opd --index {index} "
EVAL = "eval --model {student} --index {index} --bench tinyworld --bench-dir {world} --device cpu "
DISTILL = "distill-data --teacher {teacher} --index {index} --data {train} --device cpu "
SHORT = "-o rollout.max_prompt_tokens=3 "
PROMPT = "no prompt fits: the shortest has "
CASES = {
    "no file": (RL + "--data {here}/gone.jsonl", "gone.jsonl"),
    "few questions": (RL + "--batch-size 500", "questions are fewer than a batch of 500"),
    "no validation file": (RL + "--eval-data {here}/gone.jsonl", "gone.jsonl"),
    "dgpo prompt": (RL + SHORT, PROMPT),
    "ppo prompt": (RL + SHORT + "--method ppo", PROMPT),
    "grpo prompt": (RL + SHORT + "--method grpo", PROMPT),
    "opd prompt": (OPD + SHORT, PROMPT),
    "distill prompt": (DISTILL + SHORT, PROMPT),
    "episode": (RL + "-o rollout.max_tokens=4", "an episode has 4 tokens"),
    "wave": (RL + "-o rollout.wave=0", "wave = 0 is too small"),
    "kd wave": (OPD + "-o rollout.wave=0", "wave = 0 is too small"),
    "one token": (RL + "-o rollout.max_tokens=1", "max_tokens = 1 is too small"),
    "rate nan": (RL + "--lr nan", "lr = nan is not"),
    "rate inf": (KD + "--lr inf", "lr = inf is not positive"),
    "rate negative": (RL + "-o critic_lr=-1", "critic_lr = -1.0 is not positive"),
    "steps": (RL + "--steps 0", "steps = 0 is not positive"),
    "kd steps": (KD + "--steps 0", "steps = 0 is not positive"),
    "batch": (RL + "--batch-size -4", "batch_size = -4 is not positive"),
    "samples": (RL + "-o samples=0", "samples = 0 is not positive"),
    "save": (RL + "-o save_every=-1", "save_every = -1 is negative"),
    "warm-up": (KD + "-o warmup_steps=-1", "warmup_steps = -1 is negative"),
    "beta": (RL + "-o beta2=1.0", "beta2 = 1.0"),
    "temperature": (RL + "-o rollout.temperature=nan", "nan' is not float"),
    "distill limit": (DISTILL + "--limit 0", "limit = 0"),
    "distill samples": (DISTILL + "--samples 0", "samples = 0 is not positive"),
    "no trajectories": (KD + "--data {here}/gone.jsonl", "gone.jsonl"),
    "not cached": (RL + "--student someone/model", "someone/model is not cached"),
    "no such map": (KD + "-o lora.rank=4 -o lora.target_modules=q_prj", "the model has no 'q_prj'"),
    "rank": (RL + "-o lora.rank=999", "lora.rank = 999 is more than"),
    "flipped bit": (RL + "--index {flipped}", "was changed after it was written"),
    "flipped bit, distill": (DISTILL + "--index {flipped}", "was changed after it was written"),
    "flipped bit, questions": ("make-questions {flipped} --no-model", "was changed after it was written"),
    "no passage": ("make-questions {here} --no-model", "holds no usable passage"),
    "no gpu": ("quickstart --device cuda:99", "cuda:99"),
    "no gpu, rows": ("reproduce --device cuda:99", "cuda:99"),
    "eval not cached": (EVAL + "--model someone/model", "someone/model is not cached"),
}


@pytest.fixture(scope="module")
def places(offline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checks")
    flipped = Path(shutil.copytree(offline.index, folder / "flipped")) / "passages.jsonl"
    content = bytearray(flipped.read_bytes())
    content[50] ^= 1
    flipped.write_bytes(content)
    return {
        "flipped": flipped.parent,
        "index": offline.index, "teacher": offline.teacher, "student": offline.student,
        "train": offline.questions("train"), "world": offline.folder / "world",
        "trajectories": write_one_trajectory(offline, folder / "t.jsonl"),
    }  # fmt: skip


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that goes on to its models fails the test."""
    from dgpo_cli.models import load

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", refuse)


@pytest.mark.parametrize("dry", ["--dry-run", ""], ids=["dry", "real"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_weights")
def test_refused_alike(dgpo: Callable[..., Any], folder: Path, places: dict[str, Path], name: str, dry: str) -> None:
    argv, says = CASES[name]
    ended = dgpo(*f"{argv} {dry}".format(here=folder, **places).split())
    assert ended.status == 1
    assert len(ended.errors) == 1 and says in ended.errors[0], ended.err
    assert not (folder / "runs").exists()


@pytest.mark.usefixtures("no_weights")
def test_the_shortest_prompt_and_the_limit_are_told(dgpo, folder, places, offline):
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import load_tokenizer
    from dgpo_cli.models.sources import load_protocol, resolve
    from dgpo_cli.qa_sets import read_questions

    codec = Codec(load_tokenizer(str(offline.student)), load_protocol(resolve(str(offline.student)))[0])
    shortest = min(len(codec.prompt_ids(q.text).ids) for q in read_questions(offline.questions("train")))
    ended = dgpo(*f"{RL} {SHORT} --dry-run".format(**places).split())
    limits = f"the shortest has {shortest} tokens, and 3 are allowed (rollout.max_prompt_tokens = 3)"
    assert ended.errors == [f"error: no prompt fits: {limits}"]
    assert f"-o rollout.max_prompt_tokens={shortest} " in ended.err
    rows = [{"id": str(i), "question": "Who " * (1 + i // 4) + "?", "golden_answers": ["A"]} for i in range(8)]
    write_jsonl_atomic(folder / "q.jsonl", rows)
    limit = len(codec.prompt_ids("Who ?").ids)
    some = dgpo(*f"{RL} --data q.jsonl -o rollout.max_prompt_tokens={limit} --dry-run".format(**places).split())
    assert some.status == 0 and f"4 of 8 prompts are longer than {limit} tokens" in some.err


FREE = {"tight": 567_000_000, "none": 300_000_000}  # bytes; libraries take 500 MB, 20 episodes of 200 tokens 22 MB


@pytest.mark.usefixtures("no_weights")
def test_a_start_that_cannot_fit_is_refused_with_its_largest_part(dgpo, folder, places, monkeypatch):
    monkeypatch.setattr(machine, "free_main", lambda: FREE["none"])
    for argv in (RL, KD, EVAL, DISTILL):
        ended = dgpo(*argv.format(**places).split())
        assert ended.status == 1 and "GiB of cpu memory are free" in ended.errors[0], (argv, ended.err)
        assert not (folder / "runs").exists()


def test_defaults_fit_themselves_and_a_resumed_run_keeps_them(dgpo, folder, places, monkeypatch):
    argv = f"{RL} --batch-size 20 --out r -o rollout.max_tokens=200".format(**places).split()
    monkeypatch.setattr(machine, "free_main", lambda: FREE["tight"])
    dry = dgpo(*argv, "--dry-run", "--json")
    sizes = json.loads(dry.out)["fitted"]
    assert (
        dry.status == 0 and sizes["micro_batch_tokens"] < 16_384 and "fitted to 0.5 GiB of free cpu memory" in dry.err
    )
    named = dgpo(*argv, "--dry-run", "-o", "micro_batch_tokens=16384")
    assert named.status == 1 and f"these would fit: -o micro_batch_tokens={sizes['micro_batch_tokens']}" in named.err
    made = dgpo(*argv)
    assert made.status == 0, made.err
    assert json.loads((folder / "r" / "sizes.json").read_text()) == sizes
    assert "micro_batch_tokens = 16384" in (folder / "r" / "config.toml").read_text()


@pytest.mark.parametrize(
    "error", ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory", None]
)
def test_out_of_memory_ends_in_one_line_and_the_same_command_goes_on_with_less(
    dgpo, folder, places, monkeypatch, error
):
    from dgpo_cli.training import loop

    argv = f"{RL} --steps 3 -o save_every=1 -o rollout.max_tokens=200 --out r".format(**places).split()
    step, calls = loop.optimizer_step, []

    def fail(*args: object, **options: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:  # two updates a step
            raise MemoryError if error is None else RuntimeError(error)
        return step(*args, **options)

    monkeypatch.setattr(loop, "optimizer_step", fail)
    ended = dgpo(*argv)
    assert ended.status == 1 and len(ended.errors) == 1
    assert ended.errors[0].startswith("error: out of memory with -o micro_batch_tokens=16384 -o rollout.wave=64"), (
        ended.err
    )
    assert "goes on from the last saved state with -o micro_batch_tokens=8192 -o rollout.wave=32" in ended.err
    assert [path.name for path in (folder / "r" / "state").iterdir()] == ["step-00000001"]
    again = dgpo(*argv)
    assert again.status == 0, again.err
    assert "as this run began: -o micro_batch_tokens=8192" in again.err


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize("argv", ["quickstart --out mine", "learn docs --out mine", "reproduce --out mine --seeds 2"])
def test_a_folder_of_others_is_refused_alike(dgpo, folder: Path, argv: str, dry: list[str]) -> None:
    inside = folder / "mine" / ("fair/seed-1" if "reproduce" in argv else "")
    (inside / "index").mkdir(parents=True)
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("A town.")
    ended = dgpo(*argv.split(), *dry)
    assert ended.status == 1 and ended.errors[0].endswith("index was not made by this command, which would replace it")
    assert [path.name for path in inside.iterdir()] == ["index"]


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
def test_documents_of_which_none_can_be_read_are_refused_alike(dgpo, folder: Path, dry: list[str]) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "picture.png").write_bytes(b"x")
    ended = dgpo("learn", "docs", *dry)
    assert (ended.status, ended.errors) == (1, ["error: docs holds no usable passage: no file can be read"])
    assert not (folder / "agent").exists()


def test_a_dry_run_needs_what_the_run_will_need(dgpo, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    for dry in (["--dry-run"], []):
        ended = dgpo("reproduce", *dry)
        assert ended.status == 1 and "needs matplotlib, which is not installed" in ended.errors[0]


@pytest.mark.parametrize("dry", ["--dry-run", ""], ids=["dry", "real"])
@pytest.mark.parametrize("place", ["--out mine", "--resume mine"])
@pytest.mark.parametrize(
    "argv",
    [
        EVAL + "--limit 3",
        DISTILL + "--temperature 0.5",
        "make-questions {index} --no-model --passages 5",
        RL + "--lr 1e-5",
        KD + "--lr 1e-5",
    ],
    ids=["eval", "distill-data", "make-questions", "rl", "kd"],
)
@pytest.mark.usefixtures("no_weights")
def test_a_run_of_other_settings_is_refused_alike(
    dgpo, folder: Path, places: dict[str, Path], argv: str, place: str, dry: str
) -> None:
    RunDir.open(argv.split()[0], {"seed": 7, "device": "cuda"}, out=Path("mine")).close()
    before = sorted(Path("mine").iterdir())
    ended = dgpo(*f"{argv} {place} {dry}".format(**places).split())
    assert ended.status == 1 and "the run mine has other settings than this command" in ended.errors[0], ended.err
    assert sorted(Path("mine").iterdir()) == before
