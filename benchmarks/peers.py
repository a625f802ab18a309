"""The same critique–revise–judge job by cai and by what people write it with today.

    python benchmarks/peers.py [PROMPTS] [REPEATS] [WAYS]

Each way answers the same prompts with the same model, criticises and revises by the same principle and instructions,
and asks which of draft and revision is better, in both orders; every text has at most 96 tokens.

- `ours`: `cai`'s feedback stage, cache and row files included
- `barrier`: a script over vLLM's `LLM.chat`, one stage after the other
- `distilabel`: a distilabel 1.5 pipeline of ChatGeneration tasks on a `vllm` server of its own, with the same engine
  settings (its verdicts are written tokens: it has no others). The benchmark makes an environment for it.
- `transformers`: `generate` in batches of 16, verdicts from the logits of the next token

The ways take turns, each measurement in processes of its own; loading is not counted: of distilabel the time from its
first row to its last. Reading the line of JSON: `ratio` has the median of ours ÷ theirs in examples per second, pair by
pair (above 1: ours is faster); `examples_per_second` the median of each way.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from cai.config.locate import cache_folder
from cai.constitution.principles import Constitution, assign, load_constitution
from cai.constitution.templates import Templates
from cai.data.prompts import read_prompts
from cai.data.records import Message, Prompt
from cai.feedback.judge import JudgeConfig
from cai.feedback.pipeline import FeedbackJob, collect_feedback
from cai.feedback.revise import ReviseConfig
from cai.inference.cache import Cache
from cai.inference.engine import Engine, EngineConfig, Generate
from cai.inference.models import Model, resolve_model
from cai.inference.scheduler import Scheduler
from cai.inference.vllm import VllmEngine
from cai.inference.vllm_settings import engine_arguments

ROOT = Path(__file__).parent.parent
WAYS = ("ours", "barrier", "distilabel", "transformers")
TOKENS, TEMPERATURE, BATCH = 96, 0.7, 16
ENGINE = EngineConfig(max_model_len=4096, concurrency=32)
MODEL = "smollm2-135m"
DRAFT, REVISION = "«draft»", "«revision»"  # what stands for texts that are not written yet
DISTILABEL = ("distilabel==1.5.3", "openai>=1.0", "setuptools<81")
START_SECONDS = 300.0


def inputs(count: int) -> tuple[list[Prompt], Constitution, Templates]:
    prompts = read_prompts(ROOT / "examples/prompts.jsonl", count)[0]
    return prompts, load_constitution(ROOT / "constitutions/harmless.yaml"), Templates(ROOT / "prompts/default")


def job(count: int) -> list[dict[str, Any]]:
    """What a script needs to know of each prompt: its messages, the instructions, and the judge's two questions."""
    prompts, constitution, templates = inputs(count)
    rows = []
    for prompt in prompts:
        principle, request = assign(constitution, 0, prompt.id, "round 1")[0], prompt.messages[-1]["content"]
        orders = ({"A": DRAFT, "B": REVISION}, {"A": REVISION, "B": DRAFT})
        rows.append(
            {
                "messages": prompt.messages,
                "critique": templates.critique(principle, 1, request),
                "revise": templates.revise(principle, 1, request, "-"),
                "verdicts": [templates.judge(principle, prompt.messages, order, None) for order in orders],
            }
        )
    return rows


def filled(messages: list[Message], draft: str, revision: str) -> list[Message]:
    """A judge's question with the texts that are written by now."""
    return [
        Message(role=m["role"], content=m["content"].replace(DRAFT, draft).replace(REVISION, revision))
        for m in messages
    ]


def asked(rows: list[dict[str, Any]], drafts: list[str], revisions: list[str]) -> list[list[Message]]:
    """The judge's questions about all prompts, in both orders."""
    whole = zip(rows, drafts, revisions, strict=True)
    return [filled(question, draft, revision) for row, draft, revision in whole for question in row["verdicts"]]


async def ours(count: int) -> float:
    prompts, constitution, templates = inputs(count)
    folder = resolve_model(MODEL)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        model = VllmEngine(folder, "benchmark", ENGINE)
        await model.generate(Generate([Message(role="user", content="Hello")], 4, 0.0, 0))  # load and warm up

        def opened(_: Model, fingerprint: str, settings: EngineConfig) -> Engine:
            return model

        scheduler = Scheduler(ENGINE, Cache(out / "cache.sqlite"), None, opened)
        revise = ReviseConfig(rounds=1, max_tokens=TOKENS, temperature=TEMPERATURE)
        rows = [
            out / name for name in ("revisions.jsonl", "preferences.jsonl", "rankings.jsonl", "applicability.jsonl")
        ]
        feedback = FeedbackJob(
            prompts, constitution, templates, revise, JudgeConfig(samples=0), 0, folder, folder, [folder], [], [], *rows
        )
        start = time.perf_counter()
        await collect_feedback(feedback, scheduler)
        return time.perf_counter() - start


def barrier(count: int) -> float:
    rows, arguments = job(count), engine_arguments(resolve_model(MODEL), ENGINE)
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
    llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=4), use_tqdm=False)
    sampling = SamplingParams(max_tokens=TOKENS, temperature=TEMPERATURE, seed=0)

    def write(conversations: list[list[Message]]) -> list[str]:
        return [output.outputs[0].text.strip() for output in llm.chat(conversations, sampling, use_tqdm=False)]

    start = time.perf_counter()
    drafts, revisions = written(rows, write)
    letters = [llm.get_tokenizer().encode(f" {letter}", add_special_tokens=False)[0] for letter in "AB"]
    verdict = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=letters)
    questions = [
        filled(q, *texts) for row, *texts in zip(rows, drafts, revisions, strict=True) for q in row["verdicts"]
    ]
    llm.chat(questions, verdict, use_tqdm=False, add_generation_prompt=False, continue_final_message=True)
    return time.perf_counter() - start


def written(rows: list[dict[str, Any]], write: Any) -> tuple[list[str], list[str]]:
    """Drafts and revisions, one stage after the other; `write` answers conversations."""
    conversations = [list(row["messages"]) for row in rows]
    texts = []
    for instruction in (None, "critique", "revise"):
        for row, conversation in zip(rows, conversations, strict=True):
            if instruction is not None:
                conversation.append(Message(role="user", content=row[instruction]))
        texts.append(write(conversations))
        for conversation, text in zip(conversations, texts[-1], strict=True):
            conversation.append(Message(role="assistant", content=text))
    return texts[0], texts[2]


def with_transformers(count: int) -> float:
    rows, folder = job(count), resolve_model(MODEL)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    torch.manual_seed(0)

    def batches(conversations: list[list[Message]], **rendering: Any) -> Iterator[Any]:
        texts = [tokenizer.apply_chat_template(c, tokenize=False, **rendering) for c in conversations]
        for first in range(0, len(texts), BATCH):
            yield tokenizer(texts[first : first + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)

    def write(conversations: list[list[Message]]) -> list[str]:
        answers: list[str] = []
        for batch in batches(conversations, add_generation_prompt=True):
            with torch.inference_mode():
                out = model.generate(
                    **batch, max_new_tokens=TOKENS, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0
                )
            new = out[:, batch["input_ids"].shape[1] :]
            answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers

    start = time.perf_counter()
    drafts, revisions = written(rows, write)
    questions = [
        filled(q, *texts) for row, *texts in zip(rows, drafts, revisions, strict=True) for q in row["verdicts"]
    ]
    for batch in batches(questions, continue_final_message=True):
        with torch.inference_mode():
            model(**batch, logits_to_keep=1)
    return time.perf_counter() - start


def with_distilabel(count: int) -> float:
    python = environment()
    with served() as url, tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "rows.json"
        rows.write_text(json.dumps(job(count)), encoding="utf-8")
        command = [
            str(python),
            str(Path(__file__).with_name("peers_distilabel.py")),
            url,
            MODEL,
            str(rows),
            str(TOKENS),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=temporary)
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def environment() -> Path:
    """The Python of an environment with distilabel, made once."""
    folder = cache_folder() / "benchmarks" / "distilabel"
    python = folder / "bin/python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*uv, *DISTILABEL], check=True)
        (folder / ".ready").touch()
    return python


@contextmanager
def served() -> Iterator[str]:
    """A vLLM server of the model, with the engine settings of the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = engine_arguments(resolve_model(MODEL), ENGINE)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", arguments["model"], "--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager"]
    for name in ("max_model_len", "max_num_seqs", "block_size", "max_num_batched_tokens", "kv_cache_memory_bytes"):
        command += [f"--{name.replace('_', '-')}", str(arguments[name])]
    command += ["--no-enable-chunked-prefill", "--disable-log-stats", "--generation-config", "vllm"]
    own = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own)
    url, deadline = f"http://127.0.0.1:{port}/v1", time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                with urlopen(f"{url}/models", timeout=5):
                    break
            except (URLError, OSError):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the vLLM server did not start") from None
                time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


def measure(way: str, count: int) -> float:
    """Examples per second, in a process of its own."""
    command = [sys.executable, __file__, str(count), "1", way, "--alone"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return count / float(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--alone"]
    count = int(arguments[0]) if arguments else 24
    repeats = int(arguments[1]) if len(arguments) > 1 else 3
    ways = arguments[2].split(",") if len(arguments) > 2 else list(WAYS)
    if "--alone" in sys.argv:
        alone = {"barrier": barrier, "distilabel": with_distilabel, "transformers": with_transformers}
        print(asyncio.run(ours(count)) if ways == ["ours"] else alone[ways[0]](count))
        return
    rates = [{way: measure(way, count) for way in dict.fromkeys(["ours", *ways])} for _ in range(repeats)]
    others = [way for way in ways if way != "ours"]
    ratio = {way: round(statistics.median(r["ours"] / r[way] for r in rates), 3) for way in others}
    medians = {way: round(statistics.median(r[way] for r in rates), 3) for way in rates[0]}
    print(json.dumps({"benchmark": "peers", "ratio": ratio, "examples_per_second": medians, "prompts": count}))


if __name__ == "__main__":
    main()
