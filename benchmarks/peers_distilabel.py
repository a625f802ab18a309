"""The job of benchmarks/peers.py as a distilabel pipeline; runs in an environment of its own, without cai.

python benchmarks/peers_distilabel.py URL MODEL ROWS TOKENS
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from distilabel.models import OpenAILLM  # type: ignore[import-not-found]
from distilabel.pipeline import Pipeline  # type: ignore[import-not-found]
from distilabel.steps import LoadDataFromDicts, StepInput, step  # type: ignore[import-not-found]
from distilabel.steps.tasks import ChatGeneration  # type: ignore[import-not-found]

TIMES = Path(tempfile.gettempdir()) / f"cai-peers-{sys.argv[3].replace('/', '-')}"


def note() -> None:
    with TIMES.open("a") as file:
        file.write(f"{time.time()}\n")


@step(inputs=["messages"], outputs=["messages"])
def begin(inputs: StepInput):  # type: ignore[no-untyped-def]
    note()
    yield inputs


@step(inputs=["messages", "generation", "critique"], outputs=["messages", "draft"])
def to_critique(inputs: StepInput):  # type: ignore[no-untyped-def]
    for row in inputs:
        row["draft"] = row["generation"] or "-"
        turns = ({"role": "assistant", "content": row["draft"]}, {"role": "user", "content": row["critique"]})
        row["messages"] = [*row["messages"], *turns]
    yield inputs


@step(inputs=["messages", "generation", "revise"], outputs=["messages"])
def to_revision(inputs: StepInput):  # type: ignore[no-untyped-def]
    for row in inputs:
        critique = row["generation"] or "-"
        turns = ({"role": "assistant", "content": critique}, {"role": "user", "content": row["revise"]})
        row["messages"] = [*row["messages"], *turns]
    yield inputs


@step(inputs=["generation", "verdicts", "draft"], outputs=["messages"])
def to_verdicts(inputs: StepInput):  # type: ignore[no-untyped-def]
    questions = []
    for row in inputs:
        for question in row["verdicts"]:
            asked = [turn for turn in question if turn["role"] != "assistant" or turn is not question[-1]]
            texts = (("«draft»", row["draft"]), ("«revision»", row["generation"] or "-"))
            messages = []
            for turn in asked:
                content = turn["content"]
                for mark, text in texts:
                    content = content.replace(mark, text)
                messages.append({"role": turn["role"], "content": content})
            questions.append({"messages": messages})
    yield questions


@step(inputs=["generation"], outputs=["generation"])
def end(inputs: StepInput):  # type: ignore[no-untyped-def]
    note()
    yield inputs


def main() -> None:
    url, model, rows, tokens = sys.argv[1:5]
    data = json.loads(Path(rows).read_text(encoding="utf-8"))

    def ask(name: str, most: int) -> ChatGeneration:
        settings = {"max_new_tokens": most, "temperature": 0.7 if most > 1 else 0.0}
        llm = OpenAILLM(model=model, base_url=url, api_key="none", generation_kwargs=settings)
        return ChatGeneration(name=name, llm=llm, input_batch_size=16)

    TIMES.unlink(missing_ok=True)
    with Pipeline(name="peers") as pipeline:
        (
            LoadDataFromDicts(data=data, batch_size=16)
            >> begin(name="begin")
            >> ask("drafts", int(tokens))
            >> to_critique(name="to_critique")
            >> ask("critiques", int(tokens))
            >> to_revision(name="to_revision")
            >> ask("revisions", int(tokens))
            >> to_verdicts(name="to_verdicts")
            >> ask("judge", 1)
            >> end(name="end")
        )
    pipeline.run(use_cache=False)
    times = [float(line) for line in TIMES.read_text().split()]
    TIMES.unlink()
    print(json.dumps({"seconds": max(times) - min(times)}))


if __name__ == "__main__":
    main()
