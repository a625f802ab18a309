"""The part of an evaluation that needs weights and not words: KL to the reference, and the reward model's scores."""

import json
import sys
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data.jsonl import file_fingerprint, read_rows, write_text
from cai.data.records import Scored
from cai.inference.models import folder_fingerprint
from cai.inference.progress import Reporter
from cai.runs.contest import HELD_OUT
from cai.runs.evaluating import EvaluationPlan
from cai.training.scoring import ScoringSpec, Writer
from cai.training.stage import follow

PAIRS = 100  # of the run's labels, whose scores are set beside those of fresh answers


def score_answers(evaluating: EvaluationPlan, out: Path, reporter: Reporter) -> tuple[list[Scored], dict[str, str]]:
    """Score the answers in `out` to the prompts held out, in a process of its own; writes scores.jsonl.

    What was scored of the same answers by the same models is not scored again. Returns also why something was not
    scored, under `kl` and `reward`.
    """
    spec, missing = _spec(evaluating, out)
    if not spec.policies and spec.reward is None:
        return [], missing
    spec_file, log = out / "scoring.json", out / "scoring.log"
    asked = {"identity": _identity(spec), **spec.model_dump(mode="json")}
    if not spec.out.exists() or _known(spec_file) != asked["identity"]:
        spec.out.unlink(missing_ok=True)
        write_text(spec_file, json.dumps(asked, indent=1) + "\n")
        with reporter.task("scores", 0, "models") as task:

            def report(event: dict[str, Any]) -> None:
                if "step" in event:
                    task.update(event["step"], event["of"], event["note"])

            try:
                follow([sys.executable, "-m", "cai.training.scoring", str(spec_file)], log, report)
            except CaiError as error:  # what was judged stands, with a note that this is missing
                return [], missing | {"kl": f"scoring failed: {error}", "reward": f"scoring failed: {error}"}
            finally:
                task.close()
    return read_rows(spec.out, Scored), missing


def _spec(evaluating: EvaluationPlan, out: Path) -> tuple[ScoringSpec, dict[str, str]]:
    e, missing = evaluating, {}
    first = e.contenders[1]
    if e.settings.temperature == 0:
        missing["kl"] = "answers are greedy (temperature 0): KL is estimated on samples"
    reward = first.reward
    if reward is None:
        missing["reward"] = f"'{first.name}' was not trained against a reward model"
    elif not (reward / "reward.json").exists():
        missing["reward"] = f"its reward model is no longer at {reward}"
        reward = None
    labels = first.run.preferences_jsonl if first.run is not None else None
    return ScoringSpec(
        answers=out / "answers.jsonl",
        prompts=HELD_OUT,
        reference=e.reference.folder,
        policies=[] if "kl" in missing else [Writer(name=c.name, folder=c.folder) for c in e.contenders[1:]],
        temperature=e.settings.temperature,
        reward=reward,
        pairs=labels if reward is not None and labels is not None and labels.exists() else None,
        pairs_limit=PAIRS,
        out=out / "scores.jsonl",
    ), missing


def _identity(spec: ScoringSpec) -> str:
    folders = [spec.reference, *(policy.folder for policy in spec.policies), *([spec.reward] if spec.reward else [])]
    files = [spec.answers, *([spec.pairs] if spec.pairs else [])]
    contents = [*map(folder_fingerprint, folders), *map(file_fingerprint, files)]
    return fingerprint([policy.name for policy in spec.policies], spec.temperature, spec.pairs_limit, contents)


def _known(path: Path) -> str | None:
    try:
        identity: str | None = json.loads(path.read_text(encoding="utf-8")).get("identity")
        return identity
    except (OSError, ValueError, AttributeError):
        return None
