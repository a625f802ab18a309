import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cai.cli.cache import bytes_text
from cai.cli.main import app
from cai.config.errors import CaiError
from cai.inference.cache import Cache, Changes, Tally, Work
from cai.inference.cache_file import DAY, Entry
from cai.inference.cache_upkeep import verify

NOW = int(time.time())


def entry(number: int, engine: str = "a" * 16, kind: str = "Generate", days: int = 0) -> Entry:
    return Entry(number.to_bytes(16), engine, kind, json.dumps({"text": "x" * 1000}), NOW - days * DAY)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs whose cache has entries of two engines; the older ones are 30 days old, and one was used."""
    entries = [entry(n) for n in range(9)] + [entry(n, "b" * 16, "Choose", days=30) for n in range(9, 15)]
    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        cache.commit(Changes(entries=entries))
        assert cache.get(entries[-1].key) is not None
    return tmp_path


def cai(*words: object, **options: object) -> Result:
    return CliRunner().invoke(app, ["cache", *map(str, words)])


def damage(runs: Path, count: int) -> None:
    with closing(sqlite3.connect(runs / "cache.sqlite")) as db:
        db.execute("UPDATE answers SET answer = '{}' WHERE id <= ?", (count,))
        db.commit()


def keys(runs: Path) -> set[int]:
    with closing(sqlite3.connect(runs / "cache.sqlite")) as db:
        return {int.from_bytes(key) for (key,) in db.execute("SELECT key FROM answers")}


def test_stats_fit_the_terminal_and_count_by_engine_and_kind(runs: Path) -> None:
    lines = cai("stats", "--runs", runs).output.splitlines()
    assert all(len(each) <= 80 for each in lines[:-1])
    assert [each.split()[:5] for each in lines[1:3]] == [
        ["a" * 12, "texts", "9", "9.68", "kB"],
        ["b" * 12, "verdicts", "6", "6.44", "kB"],
    ]
    today = time.strftime("%Y-%m-%d")
    assert lines[2].split()[-1] == today and lines[2].split()[5] != today  # a hit counts as a use
    assert lines[3].startswith("  15 entries;")


def test_verify_counts_what_is_damaged_and_fails(runs: Path) -> None:
    sound = cai("verify", "--runs", runs)
    assert (sound.exit_code, sound.output.strip()) == (0, f"{runs}/cache.sqlite: 15 intact, 0 damaged")
    damage(runs, 4)
    before = (runs / "cache.sqlite").read_bytes()
    found = cai("verify", "--runs", runs)
    assert found.exit_code == 1
    assert "11 intact, 4 damaged" in found.output and "cai cache salvage" in found.output
    assert (runs / "cache.sqlite").read_bytes() == before
    data = bytearray(before)
    data[:100] = bytes(100)
    (runs / "cache.sqlite").write_bytes(data)
    found = cai("verify", "--runs", runs)
    assert found.exit_code == 1
    assert "11 intact" in found.output and "not a database" in found.output


def test_salvage_keeps_the_intact_entries_and_the_damaged_file(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage(runs, 4)
    damaged = (runs / "cache.sqlite").read_bytes()
    assert cai("salvage", "--runs", runs).exit_code == 0
    assert keys(runs) == set(range(4, 15))
    assert (runs / "cache.sqlite.corrupt-1").read_bytes() == damaged
    assert cai("verify", "--runs", runs).exit_code == 0
    assert cai("salvage", "--runs", runs).exit_code == 0
    assert keys(runs) == set(range(4, 15))
    assert (runs / "cache.sqlite.corrupt-2").exists()


def test_prune_removes_what_is_named_and_gives_its_space_back(runs: Path) -> None:
    size = (runs / "cache.sqlite").stat().st_size
    asked = cai("prune", "--unused", 20, "--runs", runs)
    assert isinstance(asked.exception, CaiError)
    assert "would remove 5 entries, 5.37 kB; --yes" in str(asked.exception)
    assert keys(runs) == set(range(15))
    assert "5 entries removed" in cai("prune", "--unused", 29, "--yes", "--runs", runs).output
    assert keys(runs) == {*range(9), 14}
    assert "9 entries removed" in cai("prune", "--engine", "aaa", "--yes", "--runs", runs).output
    assert keys(runs) == {14}
    assert (runs / "cache.sqlite").stat().st_size < size
    assert "no such entries" in cai("prune", "--engine", "b" * 16, "--unused", 1, "--runs", runs).output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prune"], r"nothing to prune; name --engine ID, --unused DAYS, or both"),
        (["prune", "--engine", "c"], r"--engine c: no engine begins so; .* has a{16}, b{16}"),
        (["prune", "--engine", ""], r"--engine : several engines begin so"),
    ],
)
def test_what_cannot_be_pruned_is_an_error(runs: Path, words: list[str], expected: str) -> None:
    with pytest.raises(CaiError, match=expected):
        raise cai(*words, "--runs", runs).exception or AssertionError


def test_a_missing_cache_is_an_error_by_its_name(tmp_path: Path) -> None:
    for command in ("stats", "verify", "salvage"):
        found = cai(command, "--runs", tmp_path)
        assert (
            str(found.exception) == f"{tmp_path}/cache.sqlite: no such cache; --runs names the folder of runs it is in"
        )
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_shown_in_their_unit() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 65_432_100, 3 * 10**12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "65.4 MB",
        "3 TB",
    ]


def cache(folder: Path, entries: list[Entry]) -> Path:
    with closing(Cache(folder / "cache.sqlite")) as opened:
        opened.commit(Changes(entries=entries))
    return folder / "cache.sqlite"


def test_a_merge_is_a_union_in_which_the_target_has_the_first_word(tmp_path: Path) -> None:
    other = entry(2)._replace(answer=json.dumps({"text": "another"}))
    target, first, second = tmp_path / "all", tmp_path / "1", tmp_path / "2"
    cache(target, [entry(1), entry(2)])
    cache(first, [entry(1), other, entry(3), entry(4)])
    cache(second, [entry(4), *(entry(n) for n in range(100, 2600))])
    damage(second, 1)
    result = cai("merge", target, first, second / "cache.sqlite")
    assert result.exit_code == 0, result.output
    assert [each.split(": ")[1] for each in result.output.splitlines()] == [
        "2 added, 1 already there, 1 with another answer, of which the target's stays",
        "2,500 added, 0 already there, 1 damaged and not added",
        "2,504 entries",
    ]
    with closing(Cache(target / "cache.sqlite")) as merged:
        assert merged.get(entry(2).key) == {"text": "x" * 1000}
    again = cai("merge", target, first)
    assert again.output.startswith(f"{first}/cache.sqlite: 0 added, 3 already there, 1 with another answer")
    assert keys(first) == {1, 2, 3, 4}


def test_a_merge_mends_damaged_entries_and_keeps_when_they_were_used_and_what_stages_took(
    runs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "all.sqlite"
    work = Work("feedback", {"answer": Tally(cache_misses=3)}, 2.0, loaded=True)
    with closing(Cache(runs / "cache.sqlite")) as source:
        source.add_work("a" * 16, work)
    assert cai("merge", target, runs).output.startswith(f"{runs}/cache.sqlite: 15 added")
    with closing(sqlite3.connect(target)) as db:
        assert db.execute("SELECT count(*) FROM hits").fetchone() == (1,)
        db.execute("UPDATE answers SET answer = '{}' WHERE id <= 4")
        db.commit()
    assert cai("merge", target, runs).output.startswith(f"{runs}/cache.sqlite: 4 added, 11 already there")
    assert verify(target).intact == 15
    with closing(Cache(target)) as merged:
        assert merged.work("a" * 16) == [work]


def test_a_merge_names_a_source_that_it_cannot_read(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no cache")
    for source, message in ((runs, "is the target itself"), (tmp_path / "text.sqlite", "damaged (file is not a data")):
        result = cai("merge", runs, source)
        assert result.exit_code != 0 and message in str(result.exception)
    result = cai("merge", runs, tmp_path / "none")
    assert result.exit_code != 0 and f"{tmp_path}/none/cache.sqlite: no such cache" in str(result.exception)
