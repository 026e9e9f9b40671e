import json
import shutil
import subprocess
import sys
import urllib.error

import pytest
import torch
from huggingface_hub.constants import ENDPOINT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dgpo_cli.core import checksums, folders
from dgpo_cli.core import hub as core_hub
from dgpo_cli.errors import ConfigError, ModelError
from dgpo_cli.formats.tags import DEFAULT, TINYWORLD
from dgpo_cli.models import hub
from dgpo_cli.models.load import load_config, load_model, load_tokenizer, save_model
from dgpo_cli.models.shapes import shape_of
from dgpo_cli.models.sources import load_protocol, resolve
from dgpo_cli.models.tokenizer_file import require_same_tokenizer
from dgpo_cli.retrieval.dense.encoder import load_safely
from tiny import bpe_tokenizer, qwen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved model; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("models") / "agent"
    tokenizer = bpe_tokenizer(chat=True)
    model = qwen(len(tokenizer))
    save_model(folder, model, tokenizer, TINYWORLD)
    return folder, model, tokenizer


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "copy")


def fails(name, *parts, load=True):
    """The one line and the hint that loading `name` ends with."""
    with pytest.raises(ModelError) as caught:
        if load:
            load_model(str(name), device=CPU)
        else:
            resolve(str(name))
    text = f"{caught.value.message} | {caught.value.hint}"
    assert caught.value.hint and "\n" not in text
    for part in parts:
        assert part in text, text


# --- names ----------------------------------------------------------------------------------------------------------


def test_an_alias_leads_to_its_hub_id_and_a_hub_id_to_itself():
    assert resolve("qwen-0.5b").location == "Qwen/Qwen2.5-0.5B-Instruct"
    source = resolve("someone/some-model")
    assert (source.location, source.local) == ("someone/some-model", False)


def test_a_run_leads_to_its_best_weights_by_path_and_by_name(made, folder):
    shutil.copytree(made[0], folder / "runs" / "kd-0001" / "best")
    for name in ("kd-0001", "runs/kd-0001", "runs/kd-0001/best", str(folder / "runs" / "kd-0001")):
        source = resolve(name)
        assert source.local and (folder / source.location).resolve() == folder / "runs" / "kd-0001" / "best", name


def test_a_run_below_another_folder_has_a_name_too_and_two_of_one_name_are_both_told(made, folder):
    def make(place):
        shutil.copytree(made[0], folder / place / "best")
        (folder / place / "run.json").write_text("{}")

    make("quickstart/runs/dgpo")
    for name in ("dgpo", "quickstart/dgpo", "quickstart/runs/dgpo"):
        assert resolve(name).location == "quickstart/runs/dgpo/best"
    make("older/runs/dgpo")
    with pytest.raises(ConfigError, match="several runs are called dgpo") as caught:
        resolve("dgpo")
    assert "older/runs/dgpo, quickstart/runs/dgpo" in caught.value.hint
    assert resolve("older/dgpo").location == "older/runs/dgpo/best"


def test_an_unknown_name_is_told_the_nearest_aliases_and_runs(folder):
    (folder / "runs" / "rl-0001").mkdir(parents=True)
    (folder / "runs" / "rl-0001" / "run.json").write_text("{}")
    fails("qwen-0.5", "qwen-0.5b", "dgpo models", load=False)
    fails("rl-001", "rl-0001", load=False)


def test_what_is_no_model_is_said_to_be_none(folder):
    (folder / "empty").mkdir()
    (folder / "runs" / "rl-0001").mkdir(parents=True)
    record = {"command": "rl", "status": "running", "digest": "x", "created": "2026-11-29"}
    (folder / "runs" / "rl-0001" / "run.json").write_text(json.dumps(record))
    fails("empty", "no config.json", load=False)
    fails("./absent", "does not exist", load=False)
    fails("/absent/model", "does not exist", load=False)
    fails("rl-0001", "no weights", "dgpo runs", load=False)


# --- a saved model --------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_as_it_was(made):
    folder, model, tokenizer = made
    loaded = load_model(str(folder), device=CPU)
    ids = torch.randint(0, len(tokenizer), (2, 9))
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    assert (loaded.protocol, loaded.trained_with_protocol) == (TINYWORLD, True)
    assert not loaded.model.training
    assert load_config(str(folder)).hidden_size == model.config.hidden_size


def test_others_can_load_the_folder_without_this_package(made):
    folder, model, tokenizer = made
    ids = torch.randint(0, len(tokenizer), (1, 5))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("who").input_ids == tokenizer("who").input_ids
    generation = GenerationConfig.from_pretrained(folder)
    assert not generation.do_sample and tokenizer.eos_token_id in generation.eos_token_id
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pkl"))


@pytest.mark.parametrize("text", ["Where was it?\n\n", "it's Cafe\u0301 \u212b", "</search>\n\n", "a  b\t1234"])
def test_text_is_cut_into_tokens_as_before_saving(made, text):
    folder, _, tokenizer = made
    loaded = load_tokenizer(str(folder))
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_model_without_protocol_is_a_raw_one(copy):
    (copy / "protocol.json").unlink()
    assert load_protocol(resolve(str(copy))) == (DEFAULT, False)


def test_the_saved_precision_is_kept_on_request(made, tmp_path):
    _, _, tokenizer = made
    save_model(tmp_path / "half", qwen(len(tokenizer)).to(torch.bfloat16), tokenizer, TINYWORLD)
    assert load_model(str(tmp_path / "half"), device=CPU, dtype=None).model.dtype == torch.bfloat16
    assert load_model(str(tmp_path / "half"), device=CPU).model.dtype == torch.float32


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.999], ids=str)
def test_truncated_weights(copy, keep):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    fails(copy, "damaged", "export")


def test_noise_instead_of_weights(copy):
    (copy / "model.safetensors").write_bytes(b"\xff" * 300)
    fails(copy, "damaged")


@pytest.mark.parametrize("read_whole", [1 << 26, 1000], ids=["whole", "a sample"])
def test_no_flipped_bit_of_the_weights_is_loaded(copy, tmp_path, monkeypatch, read_whole):
    monkeypatch.setattr(checksums, "READ_WHOLE", read_whole)
    monkeypatch.setattr(checksums, "_BLOCK", 64)
    loaded = load_model(str(copy), device=CPU)
    save_model(tmp_path / "again", loaded.model, loaded.tokenizer, loaded.protocol)
    file = tmp_path / "again" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    fails(tmp_path / "again", "model.safetensors was changed after it was written", "checksums.json")
    (tmp_path / "again" / "checksums.json").write_text('{"files": {}')
    fails(tmp_path / "again", "checksums.json is damaged")
    (tmp_path / "again" / "checksums.json").unlink()
    load_model(str(tmp_path / "again"), device=CPU)  # of an earlier version, or changed on purpose


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_transformers_would_draw_at_random(copy, change):
    file, name = copy / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    tensor = tensors.pop(name)
    if change == "shape":
        tensors[name] = tensor[:3].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    fails(copy, "lacks 1 weights", name)


def test_weights_in_a_format_that_can_run_code_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    fails(copy, "safetensors")


def test_code_of_a_repository_is_neither_run_nor_asked_about(copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    (copy / "evil.py").write_text("raise SystemExit('this ran')")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    fails(copy, "code of its own")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", "damaged"),
        ("config.json", '{"model_type": "nonesuch"}', "nonesuch"),
        ("tokenizer.json", '{"version": ', "damaged"),
        ("tokenizer.json", '{"version": "1.0"}', "cannot be loaded"),
        ("protocol.json", "{", "protocol.json is damaged"),
        ("protocol.json", "[]", "protocol.json is damaged"),
        ("protocol.json", '{"name": "x"}', "protocol.json is damaged"),
        ("protocol.json", '{"name": "x", "prompt": "no hole", "correction": ""}', "protocol.json is damaged"),
    ],
)
def test_damaged_files_beside_the_weights(copy, file, content, says):
    (copy / file).write_text(content)
    fails(copy, says)


def test_a_missing_tokenizer_is_not_replaced_by_an_empty_one(copy):
    (copy / "tokenizer.json").unlink()
    fails(copy, "no tokenizer.json")


def test_a_tokenizer_larger_than_the_model(made, tmp_path):
    _, _, tokenizer = made
    save_model(tmp_path / "x", qwen(len(tokenizer) - 5), tokenizer, TINYWORLD)
    fails(tmp_path / "x", f"{len(tokenizer)} tokens", "not from one training")


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen-0.5b", "someone/some-model"])
def test_without_a_hub_a_model_that_is_not_cached_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fails(name, "not cached", "HF_HUB_OFFLINE", "local folder")
    assert not hub.is_cached("Qwen/Qwen2.5-0.5B-Instruct")


def test_a_hub_that_does_not_answer_is_asked_once_and_briefly(tmp_path):
    """In a process of its own, with an address where nobody listens: no retries, one line."""
    program = (
        "import time, torch\n"
        "from dgpo_cli.errors import ModelError\n"
        "from dgpo_cli.models.load import load_model\n"
        "began = time.monotonic()\n"
        "for _ in range(2):\n"
        "    try: load_model('qwen-0.5b', device=torch.device('cpu'))\n"
        "    except ModelError as error: print(error.message)\n"
        "print(time.monotonic() - began < 6)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    lines = ended.stdout.splitlines()
    assert lines[2:] == ["True"] and lines[0] == lines[1], ended
    assert "127.0.0.1:9 does not answer" in lines[0] and "Qwen/Qwen2.5-0.5B-Instruct is not cached" in lines[0]
    assert not ended.stderr, "nothing but the error itself"


def test_the_hub_is_asked_once_per_process(monkeypatch):
    asked = []

    class Refusing:
        def open(self, request, timeout):
            asked.append(timeout)
            raise urllib.error.URLError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(core_hub, "opener", Refusing)
    core_hub.unreachable.cache_clear()
    try:
        assert {core_hub.unreachable(), core_hub.unreachable()} == {f"{ENDPOINT} does not answer (no route)"}
        assert asked == [core_hub.TIMEOUT_S]
    finally:
        core_hub.unreachable.cache_clear()


def test_a_cached_model_loads_without_a_hub(made, tmp_path, monkeypatch):
    """The cache's layout is the hub library's: a snapshot folder and a reference to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    root = tmp_path / "models--someone--some-model"
    commit = "0" * 40
    shutil.copytree(made[0], root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    assert hub.is_cached("someone/some-model")
    loaded = load_model("someone/some-model", device=CPU)
    assert (loaded.protocol, loaded.trained_with_protocol) == (TINYWORLD, True)
    assert torch.equal(loaded.model.model.embed_tokens.weight, made[1].model.embed_tokens.weight)
    (root / "snapshots" / commit / "protocol.json").unlink()
    assert load_protocol(resolve("someone/some-model")) == (DEFAULT, False)


# --- two tokenizers -------------------------------------------------------------------------------------------------


def test_tokenizers_that_agree():
    require_same_tokenizer(bpe_tokenizer(), bpe_tokenizer(chat=True))


def test_tokenizers_of_another_size_or_order():
    with pytest.raises(ModelError, match=r"1 tokens differ, first '<extra>': id 420 and None"):
        larger = bpe_tokenizer()
        larger.add_tokens(["<extra>"])
        require_same_tokenizer(larger, bpe_tokenizer())
    with pytest.raises(ModelError, match="different tokenizers"):
        require_same_tokenizer(bpe_tokenizer(420), bpe_tokenizer(400))


def test_tokenizers_that_read_one_id_differently():
    text, special = bpe_tokenizer(), bpe_tokenizer()
    text.add_tokens(["<tool>"])
    special.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert text.get_vocab() == special.get_vocab()
    with pytest.raises(ModelError, match="'<tool>' is special to one"):
        require_same_tokenizer(text, special)


# --- replacing a folder ---------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    place = tmp_path / "best"
    for content in ("first", "second"):
        with folders.replacing(place) as folder:
            (folder / content).write_text(content)
        assert [p.name for p in place.iterdir()] == [content]
    with pytest.raises(RuntimeError), folders.replacing(place) as folder:
        (folder / "third").write_text("third")
        raise RuntimeError
    assert [p.name for p in place.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_killed_between_the_two_renames_nothing_is_lost(made, folder):
    run = folder / "runs" / "kd-0001"
    shutil.copytree(made[0], run / ".best.old")
    (run / "run.json").write_text("{}")
    assert resolve("kd-0001").location == str(run.relative_to(folder) / "best")
    assert load_tokenizer("kd-0001").get_vocab() == made[2].get_vocab()


def test_a_replacement_that_fails_after_a_killed_one_still_loses_nothing(tmp_path):
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "weights").write_text("precious")
    with pytest.raises(OSError), folders.replacing(tmp_path / "best"):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "best" / "weights").read_text() == "precious"


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}, "is no safetensors file in it"),
        ({"metadata": {}, "weight_map": {"a": "/etc/passwd"}}, "is no safetensors file in it"),
        ({"metadata": {}, "weight_map": {"a": "gone.safetensors"}}, "is missing"),
        ({"metadata": {}, "weight_map": {"a": 5}}, "`weight_map.a` is 5, not a non-empty text"),
        ({"metadata": {}, "weight_map": {"a": "config.json"}}, "is no safetensors file in it"),
        ({"metadata": {}, "weight_map": {}}, "`weight_map` is a dict of 0, not an object of at least 1"),
        ({"metadata": {}}, "`weight_map` is missing"),
        ([], "it is a list of 0"),
    ],
)
def test_the_list_of_shards_names_files_of_its_own_folder(copy, index, told):
    """What lies outside is in no digest of the folder, and is nobody's model."""
    (copy / "model.safetensors").rename(copy.parent / "outside.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(copy, "model.safetensors.index.json", told)


def test_pickled_weights_are_not_read_as_a_shard_of_an_encoder(copy):
    """transformers would unpickle what the list of shards names, with `use_safetensors` too."""
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    names = dict.fromkeys(load_file(copy / "model.safetensors"), "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is no safetensors file"):
        load_safely(AutoModelForCausalLM, str(copy), offline=True)


def test_weights_that_were_saved_quantized_are_refused_on_a_cpu(copy):
    config = json.loads((copy / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (copy / "config.json").write_text(json.dumps(config | quantized))
    fails(copy, "was saved in a quantized form, which is not computed with on a CPU")


@pytest.mark.parametrize("size", [10**400, 1 << 40, 2.0, "2", True, 0])
def test_sizes_are_numbers_of_something(copy, size):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": size}))
    with pytest.raises(ModelError, match=r"config\.json has no usable num_hidden_layers \(.{1,70}\)$"):
        shape_of(str(copy))
