"""What the rollout engine does not run is refused by config.json alone, as the loaded configuration would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from dgpo_cli.engine.in_process.families import require_supported
from dgpo_cli.errors import ModelError
from dgpo_cli.models.sources import context_of
from dgpo_cli.planning.models import rolled_out

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def verdict(values: dict[str, Any]) -> str | None:
    try:
        require_supported("m", values)
    except ModelError as error:
        return error.message
    return None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, None),
        ({"model_type": "qwen3", "sliding_window": 64}, None),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ({"model_type": "mistral"}, "sliding-window"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding-window"),
        (
            {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
            "sliding-window",
        ),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"model_type": "mamba"}, "another architecture (model_type 'mamba')"),
        ({"model_type": "gemma3_text"}, "another architecture (model_type 'gemma3_text')"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "type dynamic"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type dynamic"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "type dynamic",
        ),
    ],
)
def test_the_file_and_the_loaded_configuration_are_judged_alike(
    tmp_path: Path, values: dict[str, Any], message: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | values))
    loaded = AutoConfig.from_pretrained(tmp_path).to_dict()
    for form in (SIZES | values, loaded):
        found = verdict(form)
        assert found is None if message is None else message in str(found), (found, form)
    if message is None:
        assert rolled_out(str(tmp_path)).local
    else:
        with pytest.raises(ModelError, match="not supported by the rollout engine"):
            rolled_out(str(tmp_path))


@pytest.mark.parametrize("values", [{}, {"model_type": None}, {"model_type": 7}, {"model_type": ["llama"]}])
def test_a_configuration_that_names_no_family_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | values))
    with pytest.raises(ModelError, match="another architecture"):
        rolled_out(str(tmp_path))


@pytest.mark.parametrize("length", [0, -1, 1.5, "2048", True, [2048]])
def test_a_context_that_is_no_number_of_tokens_is_refused(tmp_path: Path, length: object) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(SIZES | {"model_type": "llama", "max_position_embeddings": length})
    )
    with pytest.raises(ModelError, match=r"max_position_embeddings = .*no number of tokens"):
        context_of(str(tmp_path))
