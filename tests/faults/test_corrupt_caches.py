"""Real cache files corrupted at random: no command fails on one, and every intact entry is saved.

CORRUPTIONS=900 pytest tests/faults/test_corrupt_caches.py: this many in place of a dozen.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from cai.inference import cache_upkeep
from cai.inference.cache import Cache, Changes
from cai.inference.cache_file import Entry

CORRUPTIONS = int(os.environ.get("CORRUPTIONS", "12"))
PAGE, WAL_HEADER, FRAME_HEADER = 4096, 32, 24
ENTRIES = 240


class Sound(NamedTuple):
    """A cache file and its log before they are corrupted, and its entries."""

    folder: Path
    entries: dict[bytes, Entry]


def token(number: int) -> bytes:
    return f"<{number:06d}>".encode()


@pytest.fixture(scope="module", params=["closed", "killed"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A cache with small and large entries; of a killed process, part of it is in the log alone."""
    folder, entries = tmp_path_factory.mktemp("sound"), {}
    draw = random.Random(0)
    with closing(Cache(folder / "cache.sqlite")) as cache:
        for number in range(ENTRIES):
            text = token(number).decode() * draw.choice([1, 10, 100, 1200])
            entry = Entry(draw.randbytes(16), "m" * 16, "Generate", json.dumps({"text": text}), 1_700_000_000)
            entries[entry.key] = entry
            cache.commit(Changes(entries=[entry]))
            if number == ENTRIES // 2:
                cache._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if request.param == "killed":
            (folder / "killed").mkdir()
            for path in folder.glob("cache.sqlite*"):
                shutil.copy(path, folder / "killed" / path.name)
    return Sound(folder / "killed" if request.param == "killed" else folder, entries)


def flip(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 8, 64])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def zero_pages(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 3])):
        start = draw.randrange(len(data) // PAGE + 1) * PAGE
        data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))


def truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def lose_header(data: bytearray, draw: random.Random) -> None:
    size = draw.choice([16, 100, PAGE])
    data[:size] = draw.choice([bytes(size), draw.randbytes(size)])


def scribble(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start : start + 10_000] = draw.randbytes(len(data[start : start + 10_000]))


def damage_a_header_byte(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(min(100, len(data)))] = draw.randrange(256)


KINDS = [flip, zero_pages, truncate, lose_header, scribble, damage_a_header_byte]


def units(data: bytes, log: bool) -> list[bytes]:
    """The pages of a file, or the frames of a log."""
    size, start = (PAGE + FRAME_HEADER, WAL_HEADER) if log else (PAGE, 0)
    return [data[at : at + size] for at in range(start, len(data) - size + 1, size)]


def intact(sound: Sound, before: list[bytes], after: list[bytes]) -> set[bytes]:
    """The keys of the entries all of whose pages, those with their token or hash, are as they were."""
    changed = {i for i, unit in enumerate(before) if i >= len(after) or after[i] != unit}
    places: dict[int, set[int]] = {}
    for i, unit in enumerate(before):
        for match in re.finditer(rb"<(\d{6})>", unit):
            places.setdefault(int(match[1]), set()).add(i)
    keys = list(sound.entries)
    found = set()
    for number, where in places.items():
        hash = sound.entries[keys[number]].hash()
        ends = {i for i, unit in enumerate(before) if hash in unit}
        if ends and not (where | ends) & changed:
            found.add(keys[number])
    return found


def corrupt(sound: Sound, folder: Path, seed: int) -> tuple[str, set[bytes]]:
    """A copy corrupted in one way, of the file or its log; what was done, and the keys that must be saved."""
    draw = random.Random(seed)
    kind: Callable[[bytearray, random.Random], None] = KINDS[seed % len(KINDS)]
    names = [path.name for path in sorted(sound.folder.glob("cache.sqlite*")) if path.name.endswith(("sqlite", "-wal"))]
    name, kept = draw.choice(names), set()
    for path in sound.folder.glob("cache.sqlite*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    for other in names:
        before = (sound.folder / other).read_bytes()
        data = bytearray(before)
        if other == name:
            kind(data, draw)
            (folder / other).write_bytes(data)
        log = other.endswith("-wal")
        kept |= intact(sound, units(before, log), units(bytes(data), log))
    return f"{kind.__name__} of {name}, seed {seed}", kept


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(CORRUPTIONS))
def test_a_corrupt_cache_is_used_again_with_every_intact_entry(sound: Sound, tmp_path: Path, seed: int) -> None:
    what, saved = corrupt(sound, tmp_path, seed)
    for _ in range(2):
        with closing(Cache(tmp_path / "cache.sqlite")) as cache:
            for key, entry in sound.entries.items():
                answer = cache.get(key)
                if key in saved:
                    assert answer is not None, f"{what}: an intact entry is lost"
                assert answer is None or answer == json.loads(entry.answer), what
            cache.put(b"a new one", {"text": "new"})
            assert cache.get(b"a new one") == {"text": "new"}, what


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1000 + CORRUPTIONS // 4))
def test_a_corrupt_cache_is_verified_and_counted(sound: Sound, tmp_path: Path, seed: int) -> None:
    what, saved = corrupt(sound, tmp_path, seed)
    before = (tmp_path / "cache.sqlite").read_bytes()
    found = cache_upkeep.verify(tmp_path / "cache.sqlite")
    assert (tmp_path / "cache.sqlite").read_bytes() == before, what
    assert found.intact <= len(sound.entries), what
    assert len(saved) <= sum(share.entries for share in cache_upkeep.stats(tmp_path / "cache.sqlite")), what
    cache_upkeep.salvage_now(tmp_path / "cache.sqlite")
    assert cache_upkeep.verify(tmp_path / "cache.sqlite").is_sound, what
