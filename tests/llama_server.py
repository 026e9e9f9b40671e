"""llama.cpp's own server for a GGUF file, as a process: `python -m tests.llama_server FILE SLOTS CONTEXT`.

Needs the package xllamacpp, which holds a compiled llama.cpp.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import xllamacpp


def main(file: str, slots: int, context: int) -> None:
    """`context` is in tokens of one slot."""
    given = xllamacpp.CommonParams()
    given.model.path = file
    given.model_alias = {"agent"}
    given.port, given.hostnames = 0, ["127.0.0.1"]
    given.n_parallel, given.n_ctx, given.kv_unified = slots, slots * context, False
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    # As it is started by default it computes both with less than 32 bits.
    given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    given.warmup = False
    server = xllamacpp.Server(given)
    print(json.dumps({"url": server.listening_address}), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it logs every request, and nobody reads it
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
