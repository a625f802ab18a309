"""Files that a command writes where the user said."""

from pathlib import Path

from cai.config.errors import CaiError
from cai.data.jsonl import write_text


def write_file(path: Path, text: str) -> None:
    """Write a text, making its folder; raises CaiError when that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise CaiError(f"{path}: cannot be written: {error.strerror}") from error


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet: what a person may have edited is not written over."""
    refuse_existing(path)
    write_file(path, text)


def refuse_existing(path: Path) -> None:
    """Raise CaiError for a file that is there already."""
    if path.exists():
        raise CaiError(f"{path}: already there; give another name, or remove it first")
