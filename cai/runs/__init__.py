"""Runs: the folder of one, carrying one out, comparing them. `cai.runs.load("runs/x")` has its rows as tables."""

from cai.runs.frames import RunTables, load

__all__ = ["RunTables", "load"]
