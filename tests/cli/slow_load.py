"""The cai command with a model that never finishes loading: python -m tests.cli.slow_load HOW ARGUMENTS…

Loading starts a child process, as vLLM does on a GPU, which prints its number. With HOW `stuck`, closing the engine hangs too.
"""

import asyncio
import subprocess
import sys
import time
from typing import Any

from cai.cli.main import main
from cai.inference import vllm

CHILD = """
import os, time
memory = b"1" * (1 << 28)  # a killed process with much memory takes a while to end
print("loading", os.getpid(), flush=True)
time.sleep(120)
"""


def load(*_: Any) -> None:
    subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True)
    while True:  # Python code and C code by turns, as imports are
        time.sleep(0.01)


async def hang(_: vllm.VllmEngine) -> None:
    while True:
        await asyncio.sleep(0)


if __name__ == "__main__":
    vllm.load_engine, vllm.LOAD_NOTICE_SECONDS = load, 0.5
    vllm.load_tokenizer = vllm.turn_end = lambda *_: None  # type: ignore[assignment]
    if sys.argv.pop(1) == "stuck":
        vllm.VllmEngine.close = hang  # type: ignore[method-assign]
    main()
