"""A separate program in which llama.cpp reads a GGUF file: it may abort, hang, and write to stdout and stderr.

llama_cpp_process.py runs it by its path. It reads a JSON object from stdin (see main), and writes the list of answers
to stdout.
"""

import json
import os
import sys


def main() -> None:
    """Answer requests. Input: model (path), context (tokens), threads, requests (in llama.cpp's server format)."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp writes to stdout, too
    import xllamacpp

    task = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = task["model"]
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = task["context"], 1, False, -1
    params.cpuparams.n_threads = task["threads"]
    # Keys and values in 32 bits, which its flash attention would round to 16: otherwise the error of a log-probability
    # is 1e-2 instead of 1e-4.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    json.dump([server.handle_completions(request) for request in task["requests"]], answers)
    answers.flush()
    os._exit(0)  # the threads of its server may not end


if __name__ == "__main__":
    main()
