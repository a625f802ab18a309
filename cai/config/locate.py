"""Data sets of the Hugging Face Hub as local files: downloaded once, then read like any other file.

    org/name                     the split `train`, or the only one
    org/name:test                this split
    org/name:folder/test.jsonl   this file of the repository, as it is

A split becomes one Parquet file in the cache folder, named after the commit it was taken from; without a connection
the newest one there is taken.
"""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError, similar

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<part>[\w./-]+))?")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".zst")  # of files, not of data sets


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file may be a data set's on the Hub."""
    found = HUB_ID.fullmatch(name)
    return found is not None and (found["part"] is not None or Path(name).suffix not in SUFFIXES)


def local_file(name: str) -> Path:
    """The file that a path or a Hub id stands for; a Hub id's is downloaded unless the cache has it.

    Raises: CaiError when there is neither.
    """
    if Path(name).exists():
        return Path(name)
    if not is_hub_id(name):
        found = similar(Path(name))
        hint = f"did you mean '{found}'?" if found else "expected one, or a data set of the Hub such as org/name:split"
        raise CaiError(f"{name}: no such file; {hint}")
    repo, _, part = name.partition(":")
    try:
        return _one_file(repo, part) if Path(part).suffix in SUFFIXES else _split(repo, part)
    except CaiError:
        raise
    except Exception as error:  # the Hub's client raises many kinds, offline ones of several libraries
        first = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise CaiError(f"{name}: no such file, and as a data set not to be had from the Hub: {first}") from error


def _one_file(repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, file, repo_type="dataset"))


def _split(repo: str, split: str) -> Path:
    import datasets
    from huggingface_hub import HfApi

    folder = cache_folder() / "datasets" / repo.replace("/", "--")
    try:
        commit = HfApi().dataset_info(repo).sha
    except Exception:  # no connection, told in as many ways as there are libraries below
        known = sorted(folder.glob(f"{split or 'train'}-*.parquet"), key=lambda path: path.stat().st_mtime)
        if known:
            return known[-1]
        raise
    names = datasets.get_dataset_split_names(repo, revision=commit)
    chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        said = f"no split '{split}'" if split else "several splits"
        raise CaiError(f"{repo}: {said}; put one of {', '.join(names)} behind it, {repo}:{names[0]}")
    target = folder / f"{chosen}-{commit}.parquet"
    if not target.exists():
        loaded: Any = datasets.load_dataset(repo, split=chosen, revision=commit)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".part")
        loaded.to_parquet(beside)
        beside.replace(target)
    return target


def find_file(field: str, name: str, run_file: Path) -> Path:
    """The file or folder a run file names: from here, from the run file's folder, or as shipped with cai.

    Raises: CaiError listing where it was looked for.
    """
    places = [Path(name), run_file.parent / name]
    for place in (*places, shipped(name)):
        if place.exists():
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    looked = f"looked for {tried}, and among the shipped files"
    raise CaiError(f"{run_file}: {field}: '{name}' not found ({looked}){near(name, run_file)}")


def shipped(name: str) -> Path:
    """Where a file or folder is that comes with cai: in the package, or beside it in a checkout."""
    package = Path(str(files("cai")))
    inside = package / "shipped" / name
    return inside if inside.exists() else package.parent / name


def near(name: str, run_file: Path) -> str:
    """The file that a mistyped name is likely to mean, as the end of a message; empty where there is none."""
    package, wanted = Path(str(files("cai"))), Path(name)
    for root in (Path(), run_file.parent, package / "shipped", package.parent):
        for folder in (wanted.parent, Path("constitutions")):
            found = similar(root / folder / wanted.name) if (root, folder) != (package.parent, Path()) else None
            if found and folder / found.name != wanted:
                return f"; did you mean '{folder / found.name}'?"
    return ""


def find_data(field: str, name: str, run_file: Path) -> Path:
    """The same for a file of data, which may also be a data set of the Hub (cai/config/locate.py), downloaded here."""
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
