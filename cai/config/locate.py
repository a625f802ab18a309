"""Finding the files that users name: local ones, shipped ones, and datasets of the Hugging Face Hub.

A dataset of the Hub is downloaded once and then read like any other file:

    org/name                     the split `train`, or the only one
    org/name:test                this split
    org/name:folder/test.jsonl   this file of the repository, as it is

A split becomes one Parquet file in the cache folder, named after its commit; without a connection the newest one there
is used.
"""

import difflib
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError, exists, similar, without_password

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^/]")  # one slash where it has become a path
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<part>[\w./-]+))?")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".zst")  # of files, not of datasets


def is_hub_id(name: str) -> bool:
    """Whether a name, of no local file, may be that of a dataset on the Hub."""
    parts = HUB_ID.fullmatch(name)
    return parts is not None and (parts["part"] is not None or Path(name).suffix not in SUFFIXES)


def local_file(name: str) -> Path:
    """The file with a path or Hub id; a Hub id is downloaded unless it is cached.

    Raises: CaiError for neither.
    """
    if exists(Path(name)):
        return Path(name)
    _refuse_address("", name)
    if not is_hub_id(name):
        other = similar(Path(name))
        hint = f"did you mean '{other}'?" if other else "expected one, or a dataset of the Hub such as org/name:split"
        raise CaiError(f"{name}: no such file; {hint}")
    repo, _, part = name.partition(":")
    try:
        return _download_file(repo, part) if Path(part).suffix in SUFFIXES else _download_split(repo, part)
    except CaiError:
        raise
    except Exception as error:  # the Hub's client raises many kinds, offline ones of several libraries
        first = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise CaiError(f"{name}: no such file, and the Hub has no such dataset or is unreachable: {first}") from error


def _download_file(repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, file, repo_type="dataset"))


def _download_split(repo: str, split: str) -> Path:
    import datasets
    from huggingface_hub import HfApi

    folder = cache_folder() / "datasets" / repo.replace("/", "--")
    try:
        commit = HfApi().dataset_info(repo).sha
    except Exception:  # no connection: each library below raises its own kind
        cached = sorted(folder.glob(f"{split or 'train'}-*.parquet"), key=lambda path: path.stat().st_mtime)
        if cached:
            return cached[-1]
        raise
    names = datasets.get_dataset_split_names(repo, revision=commit)
    chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = f"no split '{split}'" if split else "several splits"
        raise CaiError(f"{repo}: {problem}; choose one of {', '.join(names)}, such as {repo}:{names[0]}")
    target = folder / f"{chosen}-{commit}.parquet"
    if not target.exists():
        loaded: Any = datasets.load_dataset(repo, split=chosen, revision=commit)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        loaded.to_parquet(partial)
        partial.replace(target)
    return target


def find_file(field: str, name: str, run_file: Path) -> Path:
    """A file or folder that a run file names: from the working directory, the run file's folder, or shipped with cai.

    Raises: CaiError listing the places searched, with a similar name if there is one.
    """
    if not name.strip():
        raise CaiError(f"{run_file}: {field}: expected the name of a file or folder, found {name!r}")
    places = [Path(name), run_file.parent / name]
    for place in (*places, shipped_file(name)):
        if exists(place):
            return place
    _refuse_address(f"{run_file}: {field}: ", name)
    tried = ", ".join(dict.fromkeys(map(str, places)))
    searched = f"looked for {tried}, and among the shipped files"
    raise CaiError(f"{run_file}: {field}: '{name}' not found ({searched}){suggestion(name, run_file)}")


def _refuse_address(place: str, name: str) -> None:
    """Raises: CaiError for an address, which may hold a password and names no file."""
    if ADDRESS.match(name):
        raise CaiError(f"{place}'{without_password(name)}' is an address; expected a file: download it and name that")


def find_constitution_file(field: str, name: str, run_file: Path) -> Path:
    """`find_file` for a constitution, which may also be the bare name of a shipped one, such as `plain`."""
    places = (Path(name), run_file.parent / name, shipped_file(name), shipped_file(f"constitutions/{name}.yaml"))
    if file := next((place for place in places if exists(place) and place.is_file()), None):
        return file
    try:
        return find_file(field, name, run_file)
    except CaiError as error:
        if hint := similar_constitution(name):
            raise CaiError(str(error).partition("; did you mean")[0] + hint) from None
        raise


def similar_constitution(name: str) -> str:
    """The shipped constitution with a similar bare name, as the end of a message; empty where there is none."""
    shipped = sorted(path.stem for path in shipped_file("constitutions").glob("*.yaml"))
    near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.75)
    return f"; did you mean '{near[0]}'?" if near else ""


def shipped_file(name: str) -> Path:
    """The path of a file or folder that comes with cai: in the package, or beside it in a checkout."""
    package = Path(str(files("cai")))
    inside = package / "shipped" / name
    return inside if exists(inside) else package.parent / name


def suggestion(name: str, run_file: Path) -> str:
    """A file with a similar name, as the end of a message; empty where there is none."""
    package, wanted = Path(str(files("cai"))), Path(name)
    for root in (Path(), run_file.parent, package / "shipped", package.parent):
        for folder in (wanted.parent, Path("constitutions")):
            other = similar(root / folder / wanted.name) if (root, folder) != (package.parent, Path()) else None
            if other and folder / other.name != wanted:
                return f"; did you mean '{folder / other.name}'?"
    return ""


def find_data(field: str, name: str, run_file: Path) -> Path:
    """`find_file` for data, which may also be a dataset of the Hub, downloaded here."""
    try:
        return find_file(field, name, run_file)
    except CaiError:
        if not is_hub_id(name):
            raise
    try:
        return local_file(name)
    except CaiError as error:
        raise CaiError(f"{run_file}: {field}: {error}") from error


def cache_folder() -> Path:
    """`$CAI_CACHE`, or `cai` in the user's cache folder."""
    if chosen := os.environ.get("CAI_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cai"
