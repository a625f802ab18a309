"""One training stage in a process of its own: `python -m cai.training.worker STAGE.json`.

The parent reads one JSON object a line from standard output (progress, and `error` for what the user can mend);
everything libraries print goes to standard error. When the parent dies, so does the worker: its standard input ends.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.training import dpo, kto, orpo, reward, sft


def main() -> int:
    """Run the stage that a stage.json describes; returns the exit status."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # libraries that print must not speak between the events

    def report(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    if not sys.stdin.isatty():
        threading.Thread(target=_die_with_parent, daemon=True).start()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    data, model, folder = (Path(spec[key]) for key in ("data", "model", "folder"))
    try:
        match spec["settings"]["stage"]:
            case "sft":
                sft.train(sft.SFTConfig(**spec["settings"]), data, model, folder, spec["seed"], report)
            case "dpo":
                dpo.train(dpo.DPOConfig(**spec["settings"]), data, model, folder, spec["seed"], report)
            case "kto":
                kto.train(kto.KTOConfig(**spec["settings"]), data, model, folder, spec["seed"], report)
            case "orpo":
                orpo.train(orpo.ORPOConfig(**spec["settings"]), data, model, folder, spec["seed"], report)
            case "reward":
                reward.train(reward.RewardConfig(**spec["settings"]), data, model, folder, spec["seed"], report)
    except CaiError as error:
        report({"error": str(error)})
        return 2
    return 0


def _die_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would abort the interpreter's own exit
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
