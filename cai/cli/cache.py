"""`cai cache`: what the cache of a folder of runs holds, whether it is intact, removing what is not needed, merging."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cai.cli.console import Grid, line, result_console, show
from cai.cli.help import HelpCommand
from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.errors import CaiError
from cai.inference import cache_upkeep
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted

app = typer.Typer(
    help="Inspect, verify, prune, salvage and merge caches of model calls.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
SHOWN = 12  # digits of a fingerprint
KINDS = {"Generate": "texts", "Choose": "verdicts"}  # as the cache names a request: what answers it
UNITS = ("B", "kB", "MB", "GB", "TB")


@app.command(cls=HelpCommand)
def stats(runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Show what the cache holds.

    Entries by engine (the fingerprint of a model and its settings) and kind: texts and verdicts.
    """
    path, console = runs / CACHE_FILE, result_console()
    shares = cache_upkeep.stats(path)
    grid = Grid(["engine", "kind", "entries", "size", "oldest", "newest", "last used"], optional=[4, 6], left=2)
    for share in shares:
        size = bytes_text(share.size)
        days = (datetime.fromtimestamp(seconds).date().isoformat() for seconds in share[4:])
        grid.add(share.engine[:SHOWN], KINDS.get(share.kind, share.kind), f"{share.entries:,}", size, *days)
    show(console, grid)
    total = counted(sum(share.entries for share in shares), "entries")
    line(console, f"  {total}; {path} has {bytes_text(path.stat().st_size)}")


@app.command(cls=HelpCommand)
def verify(runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Check the hash of every entry; change nothing.

    Exit status 1 if anything is damaged.
    """
    path, console = runs / CACHE_FILE, result_console()
    found = cache_upkeep.verify(path)
    line(console, f"{path}: {found.intact:,} intact, {found.damaged:,} damaged")
    for problem in found.problems:
        line(console, f"  {problem}")
    if not found.is_sound:
        line(console, f"Keep the intact entries and set the damaged file aside: cai cache salvage --runs {runs}")
        raise typer.Exit(1)


@app.command(cls=HelpCommand)
def salvage(runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Move the intact entries to a new file, and the old one aside.

    Commands do so by themselves where they find a cache damaged. The old file stays beside the new one as
    cache.sqlite.corrupt-N, so it is safe to run this on an intact cache too.
    """
    cache_upkeep.salvage_now(runs / CACHE_FILE)


@app.command(cls=HelpCommand)
def prune(
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="ID", help="Entries of the engine that begins so, as `stats` lists it."),
    ] = None,
    unused: Annotated[
        int | None, typer.Option("--unused", metavar="DAYS", min=1, help="Entries not used for so many days.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Remove entries of an engine, or unused ones.

    With both options, those that are both. Runs that need a removed answer ask the model again.
    """
    if engine is None and unused is None:
        raise CaiError("cai cache prune: nothing to prune; name --engine ID, --unused DAYS, or both")
    path, console = runs / CACHE_FILE, result_console()
    if engine is not None:
        engine = _engine(path, engine)
    which = cache_upkeep.Which(engine, unused)
    entries, size = cache_upkeep.prunable(path, which)
    if not entries:
        line(console, f"{path}: no such entries")
        return
    what = f"{counted(entries, 'entries')}, {bytes_text(size)}"
    if not yes and not sys.stdin.isatty():
        raise CaiError(f"{path}: would remove {what}; --yes removes them without asking")
    if not yes and not typer.confirm(f"{path}: remove {what}?"):
        line(console, "Nothing is removed.")
        return
    removed = cache_upkeep.prune(path, which)
    line(console, f"{path}: {counted(removed, 'entries')} removed; the file has {bytes_text(path.stat().st_size)}")


@app.command(cls=HelpCommand)
def merge(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Cache to add to: a file, or a folder of runs.")],
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Caches whose entries are added; they stay as they are.")
    ],
) -> None:
    """Add the entries of other caches, such as those of the shards of a run.

    A union: where the target has another answer to the same request, its own stays. Entries whose hash does not verify
    are not added. The target is created if need be.
    """
    console = result_console()
    path = _cache_file(target)
    for merged in cache_upkeep.merge(path, [_cache_file(source) for source in sources]):
        parts = [f"{merged.added:,} added", f"{merged.present:,} already there"]
        parts += [f"{merged.differing:,} with another answer, of which the target's stays"] if merged.differing else []
        parts += [f"{merged.damaged:,} damaged and not added"] if merged.damaged else []
        line(console, f"{merged.source}: {', '.join(parts)}")
    entries = sum(share.entries for share in cache_upkeep.stats(path))
    line(console, f"{path}: {counted(entries, 'entries')}")


def _cache_file(path: Path) -> Path:
    """The cache of a folder of runs, or the file itself; a path that does not end in .sqlite is to be a folder."""
    return path if path.is_file() or (path.suffix == ".sqlite" and not path.is_dir()) else path / CACHE_FILE


def _engine(path: Path, name: str) -> str:
    """The engine whose fingerprint begins with `name`."""
    engines = sorted({share.engine for share in cache_upkeep.stats(path)})
    matches = [engine for engine in engines if engine.startswith(name)]
    if name in engines or len(matches) == 1:
        return name if name in engines else matches[0]
    found = "several engines begin so" if matches else "no engine begins so"
    raise CaiError(f"--engine {name}: {found}; {path} has {', '.join(matches or engines) or 'none'}")


def bytes_text(size: float) -> str:
    """A number of bytes in the largest unit that keeps it above 1: `3.2 MB`."""
    for unit in UNITS[:-1]:
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"
