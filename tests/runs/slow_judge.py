"""Labelling by a slow scripted judge, to be killed: python -m tests.runs.slow_judge DATA MODEL OUT CACHE_FILE."""

import sys
from pathlib import Path

from rich.console import Console

from cai.constitution.principles import load_constitution
from cai.constitution.templates import Templates
from cai.data.manifest import Output
from cai.feedback.judge import JudgeConfig
from cai.feedback.label import LabelJob, label_file
from cai.inference.reporter import Reporter
from tests.conftest import ROOT, SIXTEEN, scripted
from tests.runs.slow_run import weigh


def judge(data: Path, model: Path, out: Path, cache: Path, delay: float = 0.0) -> None:
    """Label the pairs of `data`; each call to the judge takes `delay` seconds."""
    principles, templates = load_constitution(SIXTEEN), Templates(ROOT / "prompts/default")
    judging = LabelJob(data, False, None, [model], principles, templates, JudgeConfig(principles=2), 0)
    label_file(judging, Output(out), cache, Reporter(Console()), scripted(weigh=weigh, delay=delay))


if __name__ == "__main__":
    judge(*map(Path, sys.argv[1:]), delay=0.05)
