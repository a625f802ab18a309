"""The file of the cache: its format, how it is opened, checked, pruned, and salvaged when it is damaged.

Each entry carries a hash of its content, so an entry is intact or it is not, whatever happened to the file around it. A
damaged file is set aside, never deleted: its intact entries, found by reading its pages one by one, go to a new file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cai import __version__
from cai.config.errors import FULL_DISK, CaiError, notice
from cai.data.jsonl import partial_path
from cai.inference.sqlite_pages import Pages, Value

FORMAT = 2  # of the file, its `user_version`; a file of format 1 has 0 there and a table `calls`
APPLICATION = 0x63616900  # "cai", and the format: the file's `application_id`
BUSY_SECONDS = 60.0  # to wait for another process's transaction
CHECKED_BYTES = 2**25  # a file up to this size is checked whenever it is opened, in at most 0.2 s
NEARLY_FULL = 2**18  # bytes free, below which SQLite fails with other errors than that of a full disk
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "fhgfs", "ceph", "glusterfs", "wekafs",
           "panfs", "pvfs2", "orangefs", "afs", "ocfs2", "gfs2")  # fmt: skip  # file systems of several machines
ROWS_AT_ONCE = 1000  # of a transaction, while other processes may wait
MANY = 10_000  # entries whose conversion is reported
DAY = 86400  # seconds
UNKNOWN_ENGINE = "unknown"  # of entries of format 1, which stored none
SALVAGED, ASIDE = ".salvaged", ".corrupt-"  # endings of the new file until it takes the name, and of the damaged one
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_SCHEMA,
          sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_IOERR_SHORT_READ)  # fmt: skip
HEADER_CONSTANTS = {18: (1, 2), 19: (1, 2), 20: (0,), 21: (64,), 22: (32,), 23: (32,)}  # bytes of a sound file
TABLES = """
CREATE TABLE IF NOT EXISTS answers (
 id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, engine TEXT NOT NULL, kind TEXT NOT NULL, answer TEXT NOT NULL,
 written INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS hits (answer INTEGER PRIMARY KEY, day INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, heartbeat REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work (engine TEXT, work TEXT);
"""
COLUMNS = "key, engine, kind, answer, written, hash"
INSERT = f"INSERT INTO answers ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


class Entry(NamedTuple):
    """An answer as it is stored: `kind` is the request's type, `answer` JSON text, `written` seconds since 1970."""

    key: bytes
    engine: str
    kind: str
    answer: str
    written: int

    def row(self) -> tuple[bytes, str, str, str, int, bytes]:
        """The values of COLUMNS."""
        return (*self, self.hash())

    def hash(self) -> bytes:
        """16 bytes that identify all of it."""
        parts = (self.key, self.engine.encode(), self.kind.encode(), str(self.written).encode(), self.answer.encode())
        return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def intact_entry(values: Sequence[Any]) -> Entry | None:
    """The entry in the values of COLUMNS; None if its hash does not verify."""
    try:
        entry = Entry(*values[:5])
        return entry if entry.hash() == values[5] else None
    except (TypeError, AttributeError, UnicodeEncodeError):  # a value of another type, or half of a surrogate pair
        return None


class DamagedFile(sqlite3.DatabaseError):
    """The file is not as it was written."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged, rather than that it cannot be reached now."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, DamagedFile) or code in DAMAGE or (code is not None and code & 0xFF in DAMAGE)


def failure(path: Path, error: Exception) -> CaiError:
    """The error for a file that cannot be reached now."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    failed = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) or isinstance(error, OSError)
    if code == sqlite3.SQLITE_FULL or (failed and shutil.disk_usage(path.parent).free < NEARLY_FULL):
        why = f"{FULL_DISK}; make room and run the same command again: the answers stored so far are kept"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        why = f"another process has locked it for {BUSY_SECONDS:.0f} s; run the same command again once that ended"
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        why = f"{error}; cai writes to this file and, beside it, to files whose names begin with its name"
    else:
        why = f"{error}; a cache needs a local disk, or a network file system with locks"
    return CaiError(f"{path}: the cache cannot be used: {why}")


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """One process at a time opens, converts or replaces the file; without locks or in a read-only folder, any."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock = stack.enter_context(path.with_name(path.name + ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_file(path: Path) -> sqlite3.Connection:
    """The file, created or converted from format 1 where needed; a damaged one is salvaged first. Within `opening`.

    Raises: CaiError when it cannot be reached, or is of a later format.
    """
    try:
        finish_salvage(path)
        try:
            return _connected(path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            salvage(path)
            return _connected(path)
    except (sqlite3.Error, OSError) as error:
        raise failure(path, error) from error


def _connected(path: Path) -> sqlite3.Connection:
    check_header(path)
    log = path.with_name(path.name + "-wal")
    log_content = log.read_bytes() if log.exists() else b""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.text_factory = _text
        version, application = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        )
        if version > FORMAT and application == APPLICATION + version:
            raise CaiError(f"{path}: a cache of format {version}; cai {__version__} reads up to {FORMAT}: update cai")
        if version not in (0, FORMAT):
            raise DamagedFile("its header is damaged")
        if path.stat().st_size <= CHECKED_BYTES and (problems := integrity_problems(db)):
            raise DamagedFile(problems[0])
        _set_journal(path, db, new=version == 0 and application == 0)
        if version != FORMAT:
            _convert(path, db)
        if log_content:
            _insert(db, entries_in(Pages(path, log_content), log_only=True))
        return db
    except BaseException:
        db.close()
        raise


def _set_journal(path: Path, db: sqlite3.Connection, new: bool) -> None:
    """A write-ahead log, whose index processes share in memory; on a network file system a rollback journal."""
    kind = file_system(path.parent)
    if kind in NETWORK or kind.startswith("fuse."):
        db.execute("PRAGMA journal_mode=TRUNCATE")
        db.execute("PRAGMA synchronous=FULL")
        if new:
            notice(f"{path}: is on a network file system ({kind}): let one process at a time use it (docs/scaling.md)")
    else:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing, a power cut the last calls


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a folder is on, such as ext4 or nfs4; empty where Linux does not say."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")  # proc_pid_mountinfo(5)
            if before.split(" ")[2:3] == [number]:
                return after.split(" ")[0]
    return ""


def _text(data: bytes) -> str:
    return data.decode(errors="replace")  # damaged: the hash will tell


def check_header(path: Path) -> None:
    """Raises: DamagedFile for a file, if there is one and it is not empty, that does not begin as SQLite's do."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        header = file.read(100)
    sound = len(header) == 100 and header.startswith(b"SQLite format 3\0")
    if not sound or any(header[place] not in values for place, values in HEADER_CONSTANTS.items()):
        raise DamagedFile("file is not a database")


def integrity_problems(db: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the structure of the file, at most ten lines."""
    lines = [str(row[0]) for row in db.execute("PRAGMA integrity_check(10)")]
    return [] if lines == ["ok"] else lines


def _convert(path: Path, db: sqlite3.Connection) -> None:
    """Create the tables, and move the answers of format 1 into them; killed on the way, the next process goes on."""
    db.executescript(TABLES)
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
        count = db.execute("SELECT count(*) FROM calls").fetchone()[0]
        if count > MANY:
            notice(f"{path}: converting {count:,} entries of an earlier version of cai")
        while rows := db.execute("SELECT key, answer FROM calls LIMIT ?", (ROWS_AT_ONCE,)).fetchall():
            db.execute("BEGIN IMMEDIATE")
            _insert(db, filter(None, map(_old_entry, rows)))
            db.executemany("DELETE FROM calls WHERE key = ?", [(key,) for key, _ in rows])
            db.execute("COMMIT")
        db.execute("DROP TABLE calls")
    _stamp(db)


def _stamp(db: sqlite3.Connection) -> None:
    """Write the format into the file's header, twice: damage to one of them is no other format."""
    db.execute(f"PRAGMA application_id={APPLICATION + FORMAT}")
    db.execute(f"PRAGMA user_version={FORMAT}")


def _insert(db: sqlite3.Connection, entries: Iterator[Entry]) -> None:
    db.executemany(INSERT, (entry.row() for entry in entries))


def _old_entry(values: Sequence[Value]) -> Entry | None:
    """An entry of format 1, a key and an answer without a hash; None for what is none."""
    match values:
        case [bytes(key), str(answer)] if len(key) == 16:
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(answer)
                kind = "Generate" if isinstance(content, dict) else "Choose" if isinstance(content, list) else None
                return Entry(key, UNKNOWN_ENGINE, kind, answer, int(time.time())) if kind else None
    return None


def entries_in(pages: Pages, log_only: bool = False) -> Iterator[Entry]:
    """The intact entries on the pages, each possibly more than once."""
    for values in pages.records(log_only):
        if len(values) == 7 and (entry := intact_entry(values[1:])) is not None:
            yield entry


def salvage(path: Path) -> Path:
    """Move the intact entries of a file to a new one of its name, and the file aside; reports it. Within `opening`.

    Killed at any moment, the next process that opens the file goes on. Entries of format 1 are kept if they are JSON.
    Returns: where the damaged file is.
    """
    new = path.with_name(path.name + SALVAGED)
    partial = partial_path(new)
    partial.unlink(missing_ok=True)
    pages = Pages(path)
    db = sqlite3.connect(partial, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=OFF")  # a partial file is of no use
        db.executescript(TABLES)
        db.execute("BEGIN")
        _insert_intact(db, pages)
        db.execute("INSERT INTO hits SELECT id, ? FROM answers", (int(time.time()) // DAY,))
        count = db.execute("SELECT count(*) FROM answers").fetchone()[0]
        _stamp(db)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        partial.unlink(missing_ok=True)
        raise
    finally:
        pages.close()
    db.close()
    _sync(partial)
    partial.replace(new)
    aside = finish_salvage(path)
    notice(f"{path}: was damaged; its {count:,} intact entries are in use, and the damaged file is kept as {aside}")
    return aside


def _insert_intact(db: sqlite3.Connection, pages: Pages) -> None:
    """Insert all that is intact on the pages, one pass over them for each format."""
    work: set[tuple[Value, ...]] = set()
    old = False

    def entries() -> Iterator[Entry]:
        nonlocal old
        for values in pages.records():
            if len(values) == 7 and (entry := intact_entry(values[1:])) is not None:
                yield entry
            elif _is_work(values):
                work.add(tuple(values))
            else:
                old = old or _old_entry(values) is not None

    _insert(db, entries())
    if old:
        _insert(db, filter(None, map(_old_entry, pages.records())))
    db.executemany("INSERT INTO work VALUES (?, ?)", work)


def _is_work(values: Sequence[Value]) -> bool:
    match values:
        case [str(), str(work)]:
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(work)
                return isinstance(content, dict) and "steps" in content
    return False


def finish_salvage(path: Path) -> Path:
    """If a salvaged file waits to take the name, set the damaged one and its log aside, under the first free name."""
    new = path.with_name(path.name + SALVAGED)
    number = 1
    while (aside := path.with_name(f"{path.name}{ASIDE}{number}")).exists():
        number += 1
    if new.exists():
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        for ending in ("-wal", "-journal", ""):  # a journal left beside the new file would be rolled into it
            if (old := path.with_name(path.name + ending)).exists():
                old.replace(aside.with_name(aside.name + ending))
        new.replace(path)
    return aside


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
