"""A stand-in for torch that is imported by the first tensor operation.

Settings, `--list`, `dgpo plan` and every check before a run read the needs of an objective and use no tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch as loaded

            return getattr(loaded, name)

    torch = _Torch()
