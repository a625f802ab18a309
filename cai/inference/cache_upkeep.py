"""Looking after caches: what is in one, whether it is intact, removing what is no longer needed, uniting several."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from cai.config.errors import CaiError, writing
from cai.inference.cache_file import (
    BUSY_SECONDS,
    COLUMNS,
    DAY,
    FORMAT,
    INSERT,
    ROWS_AT_ONCE,
    check_header,
    entries_in,
    failure,
    intact_entry,
    integrity_problems,
    is_damage,
    open_file,
    opening,
    salvage,
)
from cai.inference.sqlite_pages import Pages

SIZE = "sum(length(key) + length(engine) + length(kind) + length(answers.answer) + length(hash) + 8)"
LAST_USE = "max(written, coalesce(day * 86400, 0))"
USED = "answers LEFT JOIN hits ON hits.answer = answers.id"
Values = tuple[str | int, ...]


class Verification(NamedTuple):
    """Entries whose hash verifies, entries whose does not, and what is wrong with the file around them."""

    intact: int
    damaged: int
    problems: list[str]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.problems


class Share(NamedTuple):
    """The entries of one engine and kind of request: how many, bytes, and times in seconds since 1970."""

    engine: str
    kind: str
    entries: int
    size: int
    oldest: int
    newest: int
    used: int


class Which(NamedTuple):
    """Which entries to prune: those of an engine, unused for so many days, or both."""

    engine: str | None
    unused_days: int | None


class Merge(NamedTuple):
    """The entries of one source: added to the target, there before with the same answer or with another, damaged."""

    source: Path
    added: int
    present: int
    differing: int
    damaged: int


def verify(path: Path) -> Verification:
    """Check every entry's hash and the file's structure, and change nothing.

    Of a file too damaged to be read in order, the intact entries are counted on its pages, and no damaged ones are.
    Raises: CaiError for no file, or one that cannot be read.
    """
    _require(path)
    intact = damaged = 0
    try:
        check_header(path)
        with closing(_read_only(path)) as db:
            problems = integrity_problems(db)
            if db.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                problems.append("the header has no format number")
            for row in db.execute(f"SELECT {COLUMNS} FROM answers NOT INDEXED"):
                if intact_entry(row) is None:
                    damaged += 1
                else:
                    intact += 1
        return Verification(intact, damaged, problems)
    except sqlite3.Error as error:
        if not is_damage(error):
            raise failure(path, error) from error
        with closing(Pages(path)) as pages:
            return Verification(len({entry.key for entry in entries_in(pages)}), damaged, [str(error)])


def stats(path: Path) -> list[Share]:
    """The content of a cache by engine and kind of request, the largest first."""
    query = (
        f"SELECT engine, kind, count(*), {SIZE}, min(written), max(written), max({LAST_USE}) FROM {USED} "
        "GROUP BY engine, kind ORDER BY 4 DESC"
    )
    with closing(_opened(path)) as db:
        return [Share(*row) for row in _reading(path, db, query, ())]


def prunable(path: Path, which: Which) -> tuple[int, int]:
    """(entries, bytes) that `prune` would remove."""
    condition, values = _condition(which)
    with closing(_opened(path)) as db:
        [row] = _reading(path, db, f"SELECT count(*), coalesce({SIZE}, 0) FROM {USED} WHERE {condition}", values)
        return int(row[0]), int(row[1])


def prune(path: Path, which: Which) -> int:
    """Remove entries and give their space back; returns how many. Other processes may use the cache meanwhile."""
    condition, values = _condition(which)
    with closing(_opened(path)) as db:
        try:
            ids = [row[0] for row in db.execute(f"SELECT id FROM {USED} WHERE {condition}", values)]
            for start in range(0, len(ids), ROWS_AT_ONCE):
                some = [(id,) for id in ids[start : start + ROWS_AT_ONCE]]
                db.execute("BEGIN IMMEDIATE")
                db.executemany("DELETE FROM answers WHERE id = ?", some)
                db.executemany("DELETE FROM hits WHERE answer = ?", some)
                db.execute("COMMIT")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise failure(path, error) from error
    return len(ids)


def merge(target: Path, sources: Sequence[Path]) -> list[Merge]:
    """Add the entries of caches to `target`, which is created if need be: a union, in which the first answer stays.

    Entries whose hash does not verify are not added. Other processes may use all of these caches meanwhile; killed on
    the way, merging again goes on. Raises: CaiError for a source that is missing, the target itself or damaged.
    """
    for source in sources:
        _require(source)
        if target.exists() and source.samefile(target):
            raise CaiError(f"{source}: is the target itself; name the caches to add to it")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with opening(target):
        db = open_file(target)
    with closing(db):
        return [_merge_one(target, db, source) for source in sources]


def _merge_one(target: Path, db: sqlite3.Connection, source: Path) -> Merge:
    counts = dict.fromkeys(("added", "present", "differing", "damaged"), 0)
    try:
        check_header(source)
        with closing(_read_only(source)) as other:
            rows = other.execute(f"SELECT {COLUMNS.replace('answer', 'answers.answer')}, day FROM {USED}")
            while some := _fetched(source, rows):
                try:
                    db.execute("BEGIN IMMEDIATE")
                    for row in some:
                        counts[_add(db, row)] += 1
                    db.execute("COMMIT")
                except sqlite3.Error as error:
                    raise failure(target, error) from error
            work = other.execute("SELECT engine, work FROM work").fetchall()
            new = "INSERT INTO work SELECT :engine, :work WHERE NOT EXISTS (SELECT 1 FROM work WHERE work = :work)"
            db.executemany(new, [{"engine": engine, "work": text} for engine, text in work])
    except sqlite3.Error as error:
        raise _unreadable(source, error) from error
    return Merge(source, **counts)


def _add(db: sqlite3.Connection, row: tuple[Any, ...]) -> str:
    """Add an entry, as (COLUMNS, day of its last use), unless its key has one; what came of it, by a field of Merge."""
    entry = intact_entry(row[:6])
    if entry is None:
        return "damaged"
    if not db.execute(INSERT, entry.row()).rowcount:
        there = intact_entry(db.execute(f"SELECT {COLUMNS} FROM answers WHERE key = ?", (entry.key,)).fetchone())
        if there is not None:
            return "present" if there.answer == entry.answer else "differing"
        db.execute("DELETE FROM answers WHERE key = ?", (entry.key,))
        db.execute(INSERT, entry.row())
    if isinstance(row[6], int):
        db.execute("INSERT OR REPLACE INTO hits SELECT id, ? FROM answers WHERE key = ?", (row[6], entry.key))
    return "added"


def _fetched(source: Path, rows: sqlite3.Cursor) -> list[tuple[Any, ...]]:
    try:
        return rows.fetchmany(ROWS_AT_ONCE)
    except sqlite3.Error as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: sqlite3.Error) -> CaiError:
    if is_damage(error):
        return CaiError(f"{source}: damaged ({error}); keep its intact entries with `cai cache salvage`, then merge it")
    return failure(source, error)


def _read_only(path: Path) -> sqlite3.Connection:
    """A cache, open to be read alone. Raises: CaiError for one of format 1."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    db.text_factory = lambda data: data.decode(errors="replace")
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
        db.close()
        raise CaiError(f"{path}: a cache of an earlier version of cai, without hashes; `cai cache stats` converts it")
    return db


def salvage_now(path: Path) -> Path:
    """Move the intact entries to a new file, whatever the state of the old one; returns where the old one is."""
    _require(path)
    with opening(path):
        try:
            return salvage(path)
        except (sqlite3.Error, OSError) as error:
            raise failure(path, error) from error


def _condition(which: Which) -> tuple[str, Values]:
    """The entries to prune, in SQL, and its values."""
    conditions: list[str] = []
    values: list[str | int] = []
    if which.engine is not None:
        conditions.append("engine = ?")
        values.append(which.engine)
    if which.unused_days is not None:
        conditions.append(f"{LAST_USE} < ?")
        values.append(int(time.time()) - which.unused_days * DAY)
    return " AND ".join(conditions), tuple(values)


def _require(path: Path) -> None:
    if not path.exists():
        raise CaiError(f"{path}: no such cache; --runs names the folder of runs it is in")


def _opened(path: Path) -> sqlite3.Connection:
    _require(path)
    with opening(path):
        return open_file(path)


def _reading(path: Path, db: sqlite3.Connection, query: str, values: Values) -> list[tuple[Any, ...]]:
    try:
        return db.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise failure(path, error) from error
