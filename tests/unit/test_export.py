import io
import json
import re
import shutil
from contextlib import redirect_stdout

import pytest
import torch
from huggingface_hub import ModelCard
from tests.chat_templates import TEMPLATES, chat_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.types import Passage
from dgpo_cli.evaluation.measured import weights_digest
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.tags import TINYWORLD
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.qa_sets import read_questions
from tiny import bpe_tokenizer, qwen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    tokenizer = bpe_tokenizer(chat=True)
    folder = tmp_path_factory.mktemp("export") / "best"
    save_model(folder, qwen(len(tokenizer)), tokenizer, TINYWORLD)
    return folder


@pytest.fixture
def runs(folder, weights):
    """A cold start from a hub model, then RL from it, and an evaluation of the latter."""
    kd_config = {"student": "qwen-0.5b", "teacher": "qwen-3b", "method": "kd", "lr": 1e-4, "seed": 0}
    with RunDir.open("kd", kd_config) as run:
        for step, em in enumerate((0.125, 0.375, 0.25)):
            run.log(step, {"eval_em": em})
        shutil.copytree(weights, run.path / "best")
        run.finish({})
    started_from = str((folder / "runs" / "kd-0001").resolve())
    rl_config = {"student": started_from, "teacher": "qwen-3b", "method": "dgpo", "index": str(folder / "index")}
    rl_config |= {"critic": "shared"}
    with RunDir.open("rl", rl_config) as run:
        shutil.copytree(weights, run.path / "best")
        run.finish({})
    loaded = load_model("rl-0001", device=CPU)
    for step, (em, complete) in enumerate([(0.1, True), (0.25, True), (0.9, False)]):
        report = {
            "model": {"weights": weights_digest(loaded)},
            "complete": complete,
            "decoding": {"temperature": 0.0},
            "benchmarks": {
                "nq": {
                    "n": 1200,
                    "em": em,
                    "em_interval": {"low": em - 0.02, "high": em + 0.03},
                    "f1": 0.5,
                    "index": {"retriever": "bm25", "passages": 1000},
                },
            },
        }
        with RunDir.open("eval", {"step": step}) as run:
            (run.path / "report.json").write_text(json.dumps(report))
            run.finish({})
    return folder


def test_an_exported_run_loads_elsewhere_with_its_agent_text(dgpo, runs):
    ended = dgpo("export", "rl-0001", "agent", "--json")
    assert ended.status == 0, ended.err
    result = json.loads(ended.out)
    original = load_model("rl-0001", device=CPU)
    ids = torch.randint(0, 400, (1, 6))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(runs / "agent")(ids).logits, original.model(ids).logits)
    assert AutoTokenizer.from_pretrained(runs / "agent").chat_template == original.tokenizer.chat_template
    assert load_model("agent", device=CPU).protocol == TINYWORLD
    assert result["parameters"] == original.model.num_parameters() and result["dtype"] == "float32"
    assert result["bytes"] == sum(p.stat().st_size for p in (runs / "agent").iterdir())
    names = {p.name for p in (runs / "agent").iterdir()}
    assert {"README.md", "protocol.json", "generation_config.json", "config.json", "tokenizer.json"} <= names


def test_the_card_tells_origin_results_and_settings_and_no_folder_of_this_machine(dgpo, runs):
    dgpo("export", "rl-0001", "agent")
    card = (runs / "agent" / "README.md").read_text()
    _, metadata, body = card.split("---", 2)
    assert "base_model: Qwen/Qwen2.5-0.5B-Instruct" in metadata and "license: apache-2.0" in metadata
    result = ModelCard(card).data.eval_results[0]
    assert (result.dataset_name, result.metric_value, result.dataset_args["questions"]) == ("nq", 0.25, 1200)
    assert result.metric_args["interval_95"] == pytest.approx([0.23, 0.28])
    assert body.index("kd-0001: cross-entropy") < body.index("rl-0001: DGPO")
    assert "teacher qwen-3b" in body
    assert body.count("unlike the paper, the critic is a head on the student's hidden states") == 1
    assert re.findall(r"^\| nq .*", body, re.MULTILINE) == [
        "| nq | 1,200 | 25.0 % | 23.0-28.0 % | 50.0 % | greedy, bm25 over 1,000 passages |"
    ]
    assert 'student = "kd-0001"' in body and "lr = 0.0001" in body
    assert str(runs) not in card and "transformers " in body.splitlines()[-1]


def test_the_card_tells_limits_that_an_evaluation_did_not_take_from_the_model(dgpo, runs):
    """A figure of one token a turn is none of the model as it is asked; it stands beside the other one."""
    for path in sorted((runs / "runs").glob("eval-*"))[:2]:
        file = path / "report.json"
        report = json.loads(file.read_text())
        limits = {"top_k": TINYWORLD.top_k, "max_turns": TINYWORLD.max_turns, "max_new_tokens": 500}
        report["rollout"] = limits | ({"max_new_tokens": 1} if path.name.endswith("1") else {})
        file.write_text(json.dumps(report))
    dgpo("export", "rl-0001", "agent")
    rows = [line for line in (runs / "agent" / "README.md").read_text().splitlines() if line.startswith("| nq |")]
    assert [row.split("|")[3].strip() for row in rows] == ["10.0 %", "25.0 %"]
    assert "greedy, max_new_tokens 1, bm25 over 1,000 passages" in rows[0]
    assert "greedy, bm25 over 1,000 passages" in rows[1]


def test_without_evaluations_the_card_says_so(dgpo, runs):
    for path in (runs / "runs").glob("eval-*"):
        shutil.rmtree(path)
    dgpo("export", "kd-0001", "agent")
    card = (runs / "agent" / "README.md").read_text()
    assert "Not measured" in card and "validation questions of its run: 37.5 %" in card


def card_of(dgpo, folder, config, *, command="kd", steps=(), weights):
    with RunDir.open(command, config, out=folder / "runs" / "made") as run:
        for step, em in steps:
            run.log(step, {"eval_em": em, "eval_score": em})
        shutil.copytree(weights, run.path / "best")
        run.finish({})
    assert dgpo("export", "made", "agent").status == 0
    return (folder / "agent" / "README.md").read_text()


def test_a_student_of_a_served_teacher_names_who_wrote_and_no_default(dgpo, folder, weights):
    with RunDir.open(
        "distill-data", {"teacher": "big-one", "teacher_url": "http://x/v1"}, out=folder / "served"
    ) as run:
        run.finish({})
    config = {"student": "qwen-0.5b", "teacher": "qwen-3b", "method": "seqkd", "trajectories": str(folder / "served")}
    card = card_of(dgpo, folder, config | {"steps": 24}, steps=[(4, 0.5), (8, 0.25)], weights=weights)
    assert "(SeqKD), 8 steps, the weights of step 4 kept, trajectories by big-one\n" in card
    assert "qwen-3b" not in card and "pip install" not in card


@pytest.mark.parametrize(
    ("settings", "who", "whose"),
    [
        ({"teacher": "gold"}, "a script that knows the supporting passages", ""),
        (
            {"teacher": "demonstrations", "demonstrations": "/home/me/mine.jsonl"},
            "the demonstrations in mine.jsonl",
            "; whether the demonstrations in mine.jsonl may be learned from is theirs to say",
        ),
    ],
)
def test_trajectories_that_no_model_wrote(dgpo, folder, weights, settings, who, whose):
    with RunDir.open("distill-data", settings | {"tokenizer": "qwen-0.5b"}, out=folder / "made-data") as run:
        run.finish({})
    config = {"student": "qwen-0.5b", "method": "seqkd", "trajectories": str(folder / "made-data")}
    card = card_of(dgpo, folder, config, steps=[(4, 0.5)], weights=weights)
    assert f"trajectories by {who}\n" in card
    assert f"- licence of the base model: apache-2.0{whose}\n" in card


def test_plain_ppo_has_no_teacher(dgpo, folder, weights):
    config = {"student": "someone/unknown-base", "teacher": "qwen-3b", "method": "ppo", "seed": 0}
    card = card_of(dgpo, folder, config, command="rl", weights=weights)
    assert "qwen-3b" not in card and "and the teacher" not in card
    assert "licence: not recorded; the page of someone/unknown-base names that of the base model\n" in card


def test_the_cards_code_runs_and_gives_the_model_the_text_that_it_was_trained_on(
    dgpo, offline, searcher, folder, monkeypatch
):
    assert dgpo("export", str(searcher), "agent").status == 0
    code = re.search(r"```python\n(.*?)```", (folder / "agent" / "README.md").read_text(), re.DOTALL)[1]
    assert code.count("\n") <= 40
    known = read_questions(offline.questions("train"))[0].text
    code = code.replace('"Where was the author of the book born?"', repr(known))
    code = code.replace('agent.get("max_new_tokens", 500)', "40")
    monkeypatch.chdir(folder / "agent")
    shown, names = io.StringIO(), {}
    with redirect_stdout(shown):
        exec(compile(code, "card", "exec"), names)
    lines = shown.getvalue().splitlines()
    kinds = ("searched: ", "answer: ", "a turn without an action")
    assert 1 <= len(lines) <= TINYWORLD.max_turns + 1 and all(line.startswith(kinds) for line in lines)
    assert lines[0].startswith("searched: "), "it stops at the end of a search, and the query is read"
    loaded = load_model(".", device=CPU)
    codec = Codec(loaded.tokenizer, loaded.protocol)
    prompt = codec.prompt_ids(names["question"]).ids
    assert names["ids"][: len(prompt)] == list(prompt)
    found = [Passage("1", names["passages"][0]), Passage("2", '"T"\na </information> b')]
    assert names["encode"](names["observation"]([p.contents for p in found])) == list(
        codec.observation_ids(found, 999).ids
    )


@pytest.mark.parametrize(
    "template", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in TEMPLATES if name != "qwen3")]
)
def test_the_cards_code_for_tool_calls_gives_the_model_the_text_of_an_episode(dgpo, folder, monkeypatch, template):
    """The model is made to write a script; what it is given is compared with what the agent of this package reads."""
    tokenizer, protocol = chat_tokenizer(TEMPLATES[template]), Protocol.of("tool_calls")
    save_model(folder / "made", qwen(len(tokenizer), positions=4096), tokenizer, protocol)
    assert dgpo("export", "made", "agent").status == 0
    code = re.search(r"```python\n(.*?)```", (folder / "agent" / "README.md").read_text(), re.DOTALL)[1]
    assert code.count("\n") <= 40
    passage = '"Vesapo"\nA town </tool_response><|im_end|> < think > & 東京.'
    code = re.sub(r"^passages = .*", lambda _: f"passages = [{passage!r}]", code, flags=re.MULTILINE)
    codec, form = Codec(tokenizer, protocol), protocol.agent_format
    searched = form.write("I look.", "search", 'the "town"\\of Orla')
    turns = [searched, "<think>\nHm.\n</think>\n\n<tool_call>no call</tool_call>", form.write("So.", "answer", "Orla")]
    as_text = Passage("1", passage.replace("<|", "&lt;|"))  # the program's way to keep a special token out
    found = codec.observation_ids([as_text], 999, after=codec.text_ids(searched)[-1]).ids
    read = [codec.prompt_ids("Where was the author of the book born?").ids, found, codec.correction_ids().ids]
    given, generate = [], GenerationMixin.generate

    def forced(model, ids, **how):
        script = [*codec.text_ids(turns[len(given)]), codec.tokenizer.eos_token_id, *codec.text_ids("and more")]
        given.append(ids[0].tolist())
        begin = ids.shape[1]
        return generate(model, ids, prefix_allowed_tokens_fn=lambda _, now: [script[len(now) - begin]], **how)

    monkeypatch.setattr(GenerationMixin, "generate", forced)
    monkeypatch.chdir(folder / "agent")
    shown = io.StringIO()
    with redirect_stdout(shown):
        exec(compile(code, "card", "exec"), {})
    assert shown.getvalue().splitlines() == [
        'searched: "the \\"town\\"\\\\of Orla"', "a turn without an action", "answer: Orla",
    ]  # fmt: skip
    expected = []
    for place, turn in enumerate(turns):
        expected += read[place]
        assert codec.decode(given[place]) == codec.decode(expected) and given[place] == expected, place
        expected += codec.text_ids(turn)


def test_weights_are_rounded_only_on_request(dgpo, runs):
    dgpo("export", "rl-0001", "full")
    dgpo("export", "rl-0001", "half", "--dtype", "bfloat16")
    full, half = (load_model(name, device=CPU, dtype=None).model for name in ("full", "half"))
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(full.to(torch.bfloat16).lm_head.weight, half.lm_head.weight)


def test_what_is_there_is_not_replaced_unless_asked(dgpo, runs):
    dgpo("export", "rl-0001", "agent")
    (runs / "agent" / "mine.txt").write_text("kept")
    refused = dgpo("export", "rl-0001", "agent")
    assert refused.status == 1 and "--overwrite" in refused.err and (runs / "agent" / "mine.txt").exists()
    assert dgpo("export", "rl-0001", "agent", "--overwrite").status == 0
    assert not (runs / "agent" / "mine.txt").exists()


def test_a_folder_that_holds_no_model_is_never_replaced(dgpo, runs):
    (runs / "thesis").mkdir()
    (runs / "thesis" / "chapter1.tex").write_text("years of work")
    refused = dgpo("export", "rl-0001", "thesis", "--overwrite")
    assert refused.status == 1 and "no model folder" in refused.err
    assert (runs / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("nonesuch", "agent"), "unknown model"),
        (("rl-0001", "agent", "--dtype", "int3"), "bfloat16"),
        (("rl-0001", "agent", "--public"), "--push"),
        (("rl-0001", "agent", "--push", "no-owner"), "OWNER/NAME"),
        (("rl-0001", "agent", "--push", "me/agent"), "HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(dgpo, runs, argv, says):
    ended = dgpo("export", *argv)
    assert ended.status == 1 and len(ended.errors) == 1 and says in ended.err
    assert not (runs / "agent").exists()
