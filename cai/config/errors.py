"""Errors that the user can correct, those of a single example, and notices, which end nothing."""

import difflib
import errno
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

FULL_DISK = "the disk is full"
TORCH_LOG = ("TORCH_CPP_LOG_LEVEL", "ERROR")
"""An environment variable that keeps warnings of torch's C++ code, and of vLLM's, off the user's terminal."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how a file in UTF-16 begins


class CaiError(Exception):
    """An error the user can correct; printed without a traceback, exit status 2.

    The message names the file, the line or field, what was found and what was expected.
    """


class RequestRefused(Exception):
    """A model cannot answer one request: a counted row, not the end of a run.

    `retryable` is false where asking again cannot help, such as for a request that is too long.
    """

    def __init__(self, reason: str, retryable: bool = True) -> None:
        super().__init__(reason)
        self.retryable = retryable


USER = re.compile(
    r"(:/+)[^/\s?#]*@|^('?)[^/\s@:']+:[^/\s@]+@"
)  # after a scheme, with one slash in a path, or at the start
QUERY = re.compile(r"(:/+[^\s?#']*\?)[^\s#']+")


def without_password(text: str) -> str:
    """A text whose addresses lose their user names, passwords and queries: `https://user:secret@host` says `***@`."""
    return QUERY.sub(r"\1***", USER.sub(lambda m: f"{m[1] or m[2] or ''}***@", text))


def notice(text: str) -> None:
    """Tell the user in one line what happened and ends nothing: on standard error, or as `notices_to` has it."""
    from cai.config.characters import visible

    if (write := _write_notice.get()) is not None:
        write(text)
    else:
        print(visible(text), file=sys.stderr, flush=True)  # it holds paths and what servers say


@contextmanager
def notices_to(write: Callable[[str], None]) -> Iterator[None]:
    """Give the notices of the block, and of asyncio tasks that begin in it, to `write`."""
    before = _write_notice.get()
    _write_notice.set(write)
    try:
        yield
    finally:
        _write_notice.set(before)  # an async generator may end in another context, where no token is valid


_write_notice: ContextVar[Callable[[str], None] | None] = ContextVar("write_notice", default=None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise the errors of reading a text file as a CaiError that names it.

    A pipe or a device is refused: it may wait for ever, and what is read twice would be empty the second time.
    """
    try:
        if "\0" in str(path):
            raise FileNotFoundError
        if path.exists() and not (path.is_file() or path.is_dir()):
            kind = stat.filemode(path.stat().st_mode)[0]
            found = {"p": "a pipe", "c": "a device", "b": "a device", "s": "a socket"}.get(kind, "a special file")
            raise CaiError(f"{path}: is {found}; expected a file: write what it holds to one")
        yield
    except FileNotFoundError:
        other = similar(path)
        hint = f"; did you mean '{other}'?" if other else ""
        raise CaiError(f"{without_password(str(path))}: no such file{hint}") from None
    except UnicodeDecodeError as error:
        raise CaiError(f"{path}: not UTF-8 text: {error}") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzipped file that is truncated or damaged
        raise CaiError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise the errors of writing a file or folder as a CaiError that names it."""
    try:
        yield
    except OSError as error:
        raise CaiError(f"{path}: cannot be written: {write_error(error)}") from error


def write_error(error: OSError) -> str:
    """Why a file cannot be written, and for a full disk what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{FULL_DISK}; make room and run the same command again: what is finished is kept"
    return (error.strerror or str(error)).lower()


def error_text(error: Exception) -> str:
    """An error in one line: the user's own as it is, the operating system's with its file, any other with its type."""
    if isinstance(error, CaiError):
        return str(error)
    if not isinstance(error, OSError):
        return f"unexpected {type(error).__name__}: {error}"
    return f"{error.filename}: {write_error(error)}" if error.filename is not None else write_error(error)


def similar(path: Path) -> Path | None:
    """The file in the same folder, of the same suffix, with the most similar name; None if none is similar.

    Or else the file of the same name with a similar suffix: `mine.yaml` for `mine.yam`.
    """
    if "\0" in str(path) or not exists(path.parent):
        return None
    files = {p.stem: p for p in sorted(path.parent.glob(f"*{path.suffix}"))}
    if matches := difflib.get_close_matches(path.stem, files, n=1):
        return files[matches[0]]
    suffixes = {p.suffix: p for p in sorted(path.parent.iterdir()) if p.stem == path.stem} if path.suffix else {}
    matches = difflib.get_close_matches(path.suffix, suffixes, n=1)
    return suffixes[matches[0]] if matches else None


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this name; there is none of a name that is too long for any."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise CaiError(f"{path}: cannot be read: {error.strerror}") from None


def decoding_hint(start: bytes) -> str:
    """What to do with a file that is not UTF-8 but begins like this, as the end of a message; empty if unknown."""
    return "; the file is UTF-16, save it as UTF-8" if start[:2] in UTF16 else ""
