"""Runs: their file, folder and plan, running them, finding and publishing them; `load_run` reads one as tables."""

from cai.runs.frames import Run, load_run

__all__ = ["Run", "load_run"]
