"""How many compiled kernels oneDNN keeps."""

from __future__ import annotations

import os

_KEPT = 256  # ours: a pass asks for some twenty at once, and the widths of a rollout come again


def keep_few_kernels() -> None:
    """Bound oneDNN's compiled kernels, before the first product; what the user has set stands.

    It compiles one for every shape of a product in bf16 and keeps 1,024 of them, half a MiB each; training meets new
    shapes at every pass. They also lie between activations, where glibc cannot give back what is free.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KEPT))
