"""Names of the engines that roll out a model which is loaded here."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["transformers", "vllm"]
