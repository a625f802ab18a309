"""What `cai try --watch` adds to the model's own time, from saving a file to the first new text.

    python benchmarks/watch.py [EDITS]

A constitution of one principle is watched with one prompt on the small model. Each edit rewords the critique and is
saved by renaming, as editors do; the next one is saved when all texts are there, and in a second series while the
model is still writing. Texts take up to 32 tokens.

Reading the line of JSON: `overhead` is the median of the seconds from saving to the first new text, less the seconds
that vLLM spent on steps of the new pass; `seconds` is the same with them. `restart` is the median of the second series
from saving to the new pass, which breaks off the texts under way. `loads` counts how often a model was loaded.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from cai.constitution.principles import load_constitution
from cai.constitution.templates import Templates
from cai.data.records import Message, Prompt
from cai.feedback.revise import ReviseConfig
from cai.inference.engine import Engine, EngineConfig
from cai.inference.models import Model, resolve_model
from cai.inference.scheduler import open_model
from cai.inference.vllm import VllmEngine
from cai.workbench.trial import Begun, Done, Event, News, Trial, changes, try_out

TOPICS = ("length", "money", "health", "music", "weather", "children", "history", "spelling", "travel", "numbers")
ROOT = Path(__file__).parent.parent


def main() -> None:
    edits = min(int(sys.argv[1]) if len(sys.argv) > 1 else 4, (len(TOPICS) - 1) // 2)
    text = (ROOT / "constitutions/plain.yaml").read_text(encoding="utf-8")
    prompt = Prompt(id="p", messages=[Message(role="user", content="How do I keep bread fresh for a week?")])
    settings = ReviseConfig(rounds=1, temperature=1, max_tokens=32)
    engines: list[VllmEngine] = []
    seconds: list[float] = []
    overhead: list[float] = []
    restart: list[float] = []
    saved: float | None = None  # when, until the first new text
    busy = 0.0  # seconds that vLLM had worked when the pass began
    number = 0

    with tempfile.TemporaryDirectory() as folder:
        file, templates = Path(folder) / "c.yaml", ROOT / "prompts/default"
        file.write_text(text, encoding="utf-8")

        def load() -> Trial:
            return Trial([prompt], load_constitution(file).principles, Templates(templates), settings)

        def open_engine(model: Model, fingerprint: str, config: EngineConfig) -> Engine:
            engine = open_model(model, fingerprint, config)
            assert isinstance(engine, VllmEngine)
            engines.append(engine)
            return engine

        def save() -> None:
            nonlocal saved, number
            number += 1
            beside = file.with_suffix(".new")
            beside.write_text(text.replace("Imagine everyone", f"Think of {TOPICS[number - 1]}"), encoding="utf-8")
            saved = time.perf_counter()
            beside.replace(file)

        def tell(event: Event) -> None:
            nonlocal saved, busy
            if isinstance(event, Begun) and saved is not None:
                busy = engines[0].busy_seconds
                if number > edits + 1:
                    restart.append(time.perf_counter() - saved)
            elif isinstance(event, News) and saved is not None:
                if number <= edits:
                    seconds.append(time.perf_counter() - saved)
                    overhead.append(seconds[-1] - (engines[0].busy_seconds - busy))
                saved = None
                if edits < number <= 2 * edits:
                    save()  # the revision is still being written
            elif isinstance(event, Done) and (number <= edits or saved is not None):
                assert saved is None, f"edit {number} changed no text"
                save()

        async def occasions() -> AsyncIterator[None]:
            async for _ in changes([file, templates]):
                yield
                if number > 2 * edits:
                    return

        try_out(load, occasions(), resolve_model("smollm2-135m"), Path(folder) / "cache.sqlite", tell, open_engine)
    found = {"overhead": overhead, "seconds": seconds, "restart": restart}
    medians = {name: round(statistics.median(times), 3) for name, times in found.items()}
    print(json.dumps({"benchmark": "watch", **medians, "edits": edits, "loads": len(engines)}))


if __name__ == "__main__":
    main()
