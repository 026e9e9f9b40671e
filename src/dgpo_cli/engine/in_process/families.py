"""Which models the rollout engine runs, told from their configuration before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo_cli.core.schema import shown
from dgpo_cli.errors import ModelError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # the same layer; they differ in biases and norms
_LENGTH_DEPENDENT = ("dynamic", "longrope")  # kinds of rotary embeddings


def require_supported(name: str, values: Mapping[str, Any]) -> None:
    """`values` are the entries of config.json about the text model, or those of a configuration that was loaded.

    Raises ModelError for a model of another family, for sliding-window attention, and for rotary embeddings that depend
    on the length of the text.
    """
    family = values.get("model_type")
    if family not in FAMILIES or _slides(family, values):
        kind = "sliding-window or linear attention" if family in FAMILIES else "another architecture"
        raise ModelError(
            f"{name}: {kind} (model_type {shown(family)}) is not supported by the rollout engine",
            hint=f"use a model of the {', '.join(FAMILIES)} families with full attention",
        )
    # Files of before transformers 5 have the older names.
    rotary = values.get("rope_parameters") or values.get("rope_scaling")
    turning = (rotary.get("rope_type") or rotary.get("type")) if isinstance(rotary, Mapping) else None
    if turning in _LENGTH_DEPENDENT:
        raise ModelError(
            f"{name}: rotary embeddings of type {turning} are not supported by the rollout engine",
            hint="use a model whose rotary embeddings do not depend on the length of the text",
        )


def _slides(family: str, values: Mapping[str, Any]) -> bool:
    """Entries that a file leaves out are transformers' defaults."""
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds):
        return True
    used = values.get("use_sliding_window", not family.startswith("qwen"))
    return bool(used and values.get("sliding_window", 4096 if family == "mistral" else None))
