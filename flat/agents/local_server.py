"""The program that serves the local model: started by `local` as a process of its own, never imported.

A process of its own, because llama.cpp's server takes over SIGINT and SIGTERM, holds the interpreter lock
while it loads, and waits for ever for open requests when it is stopped. It prints one line of JSON, the
address or the error, and ends when its standard input does, which is when its parent is gone.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

CONTEXT_TOKENS = 4096


def main(weights: str) -> None:
    try:
        server = start(weights)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise SystemExit(1) from error
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.buffer.read()
    os._exit(0)


def start(weights: str) -> Any:
    """The server, ready for requests. One thread: two are slower as soon as anything else runs."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = weights
    if hasattr(params, "hostnames"):  # the newer spelling
        params.hostnames = ["127.0.0.1"]
    else:
        params.hostname = "127.0.0.1"
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # Reusing what was computed for an earlier prompt changes the last bits of the next one's numbers, and
    # with a model this small its words. The same question is to get the same answer.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.use_jinja = True
    params.webui = False
    params.verbosity = 0
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main(sys.argv[1])
