"""The runs of a folder, read through when they are asked for and kept as long as their files stay the same."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cai.report.comparison import Together, together
from cai.report.run import Contents, read_run
from cai.report.table import Line, Query, Table, select
from cai.runs.comparison.compare import compare_runs
from cai.runs.folder import RunFolder, all_runs

KEPT = 4  # of each kind, in memory: where rows stand and what they are found by, no texts


class Kept:
    """The last few things that took long to make, by what they were made from. One is made at a time."""

    def __init__(self) -> None:
        self._found: OrderedDict[object, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], Any]) -> Any:
        """What is kept under a key, or else what `make` makes."""
        with self._lock:
            if key not in self._found:
                self._found[key] = make()
            self._found.move_to_end(key)
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
            return self._found[key]


class Opened(NamedTuple):
    """One run, or several compared, with what its examples are made from."""

    made_from: object
    run: Contents | None
    comparison: Together | None

    @property
    def table(self) -> Table:
        """Its examples."""
        found = self.run or self.comparison
        assert found is not None
        return found.table


class Library:
    """The runs of a folder, as they are whenever one is asked for."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._opened, self._selected = Kept(), Kept()

    def folders(self) -> dict[str, RunFolder]:
        """All runs by their path below the folder, the newest first."""
        return {str(folder.path.relative_to(self.runs)): folder for folder in all_runs(self.runs)}

    def folder(self, name: str) -> RunFolder:
        """A run that there is, looked up and never opened by a path; raises LookupError for any other name."""
        found = self.folders().get(name)
        if found is None:
            raise LookupError(f"there is no run '{name}' in {self.runs}")
        return found

    def open(self, names: Sequence[str]) -> Opened:
        """A run, or several compared. Raises: LookupError, CaiError when a file cannot be read."""
        folders = [self.folder(name) for name in names]
        made_from = tuple(map(_state, folders))

        def read() -> Opened:
            if len(folders) == 1:
                return Opened(made_from, read_run(folders[0]), None)
            return Opened(made_from, None, together(compare_runs(folders), folders))

        opened: Opened = self._opened.get(made_from, read)
        return opened

    def select(self, opened: Opened, query: Query) -> list[Line]:
        """All lines that a query asks for, found once for all of its pages."""
        what = (opened.made_from, query.text, *sorted(query.facets.items()), query.sort, query.descending)
        lines: list[Line] = self._selected.get(what, lambda: select(opened.table, query))
        return lines


def _state(folder: RunFolder) -> tuple[object, ...]:
    """Something that changes when a file of the run does."""
    files = [
        folder.lock_json, folder.constitution_yaml, folder.prompts_jsonl, folder.revisions_jsonl,
        folder.preferences_jsonl, folder.rankings_jsonl, folder.evaluation_jsonl, folder.left_out_jsonl,
        folder.summary_json, folder.eval / "comparisons.jsonl", *sorted(folder.train.glob("*/metrics.jsonl")),
    ]  # fmt: skip
    stats = [(str(path), path.stat()) for path in files if path.exists()]
    return (str(folder.path), *((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))
