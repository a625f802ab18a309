"""The two kinds of trouble `cai` tells apart: the user's to mend, and one example's alone."""

import difflib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CaiError(Exception):
    """Something the user can put right; printed without a traceback, exit status 2.

    The message names the file, the line or field, what was found and what was expected.
    """


class RequestRefused(Exception):
    """A model cannot answer this one request (too long, say): a counted failure, not the end of a run."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong while a text file is read into a CaiError that names it."""
    try:
        yield
    except FileNotFoundError:
        found = similar(path)
        raise CaiError(f"{path}: no such file" + (f"; did you mean '{found}'?" if found else "")) from None
    except UnicodeDecodeError as error:
        raise CaiError(f"{path}: not UTF-8 text: {error}") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzipped file that is cut short, or broken
        raise CaiError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def similar(path: Path) -> Path | None:
    """The file beside where `path` would be that is likely meant by it, of the same suffix; None if none is."""
    beside = {p.stem: p for p in sorted(path.parent.glob(f"*{path.suffix}"))}
    found = difflib.get_close_matches(path.stem, beside, n=1)
    return beside[found[0]] if found else None
