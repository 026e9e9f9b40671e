"""Numbers of the published implementations: from the file named by DGPO_REFERENCE_VECTORS, else from the copy here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FILE = Path(os.environ.get("DGPO_REFERENCE_VECTORS") or Path(__file__).with_name("reference_vectors.json"))
VECTORS: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))


def close(actual: Tensor | float, expected: object, what: str = "") -> None:
    """Equal within 1e-5 relative or 1e-6 absolute, the tolerance that the vectors are published with."""
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float32),
        torch.as_tensor(expected, dtype=torch.float32),
        rtol=1e-5,
        atol=1e-6,
        msg=lambda text: f"{what}: {text}",
    )
