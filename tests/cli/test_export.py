import json
from pathlib import Path

import pytest

from cai.cli.export import export_dataset, export_file
from cai.cli.import_ import import_
from cai.cli.main import main
from cai.config.errors import CaiError
from cai.data.jsonl import read_rows
from cai.data.preferences import read_preferences
from cai.data.records import Demonstration, Preference, Prompt, Skipped

HH = "\n\nHuman: {}\n\nAssistant: {}"


@pytest.fixture
def hh(tmp_path: Path) -> Path:
    """Three pairs as in hh-rlhf: one that can be learnt, two that cannot."""
    texts = [("so", "no"), ("same", "same"), ("same too", "same too")]
    rows = [{"chosen": HH.format(f"{i}?", a), "rejected": HH.format(f"{i}?", b)} for i, (a, b) in enumerate(texts)]
    path = tmp_path / "hh.jsonl"
    path.write_text("".join(json.dumps({**row, "worker": 7}) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_of_an_external_format_becomes_rows_of_cai_and_what_is_skipped_is_listed(
    tmp_path: Path, hh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "ours.jsonl.gz"
    import_(str(hh), "preferences", out)
    [pair], _ = read_preferences(out)
    assert (pair.chosen, pair.rejected, pair.source) == ("so", "no", "human")
    listed = read_rows(tmp_path / "new" / "ours.skipped.jsonl", Skipped)
    assert [(row.stage, row.reason) for row in listed] == [(f"hh.jsonl:{n}", "chosen equals rejected") for n in (2, 3)]
    said = capsys.readouterr().out
    assert f"Wrote {out}: 1 preference from {hh} (3 as pair)" in said
    assert "skipped: 2 × chosen equals rejected (hh.jsonl:2, hh.jsonl:3)" in said
    assert f"listed in {tmp_path}/new/ours.skipped.jsonl" in said
    assert "unused fields: worker (3)" in said


def test_the_same_file_gives_prompts_and_what_is_in_cais_format_passes_unchanged(tmp_path: Path, hh: Path) -> None:
    import_(str(hh), "prompts", tmp_path / "prompts.jsonl")
    prompts = read_rows(tmp_path / "prompts.jsonl", Prompt)
    assert [p.messages[0]["content"] for p in prompts] == ["0?", "1?", "2?"]
    assert not (tmp_path / "prompts.skipped.jsonl").exists()
    import_(str(tmp_path / "prompts.jsonl"), "prompts", tmp_path / "prompts.parquet")
    import_(str(tmp_path / "prompts.parquet"), "prompts", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "prompts.jsonl").read_bytes()


def test_preferences_in_cais_format_pass_unchanged_through_columns(tmp_path: Path) -> None:
    pair = {"prompt_id": "x", "messages": [{"role": "user", "content": "Why?"}], "tags": ["t"], "chosen": " so", "rejected": "no",
            "p": 0.625, "weight": 3.0, "source": "judge", "principle_ids": ["a"], "model": "m", "judge": "j", "seeds": [1], "input_p": 0.25,
            "verdicts": [{"principle_id": "a", "principle_hash": "h", "p_forward": 0.5, "p_reverse": 0.75, "non_option_mass": 0.1}]}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(pair) + "\n")
    import_(str(tmp_path / "a.jsonl"), "preferences", tmp_path / "b.parquet")
    import_(str(tmp_path / "b.parquet"), "preferences", tmp_path / "c.jsonl.zst")
    assert read_preferences(tmp_path / "c.jsonl.zst")[0] == [Preference.model_validate(pair)]


def test_answers_to_learn_come_out_of_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "so"}]
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": turns}, {"messages": [*turns, *turns]}], indent=1))
    import_(str(tmp_path / "chat.json"), "completions", tmp_path / "out.jsonl")
    assert [len(row.messages) for row in read_rows(tmp_path / "out.jsonl", Demonstration)] == [1, 3]
    assert "  chat: the last answer of each" in capsys.readouterr().out


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, hh: Path) -> None:
    def refused(source: Path, target: str, out: str, expected: str) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(CaiError, match=expected):
            import_(str(source), target, tmp_path / out)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    refused(hh, "completions", "out.jsonl", r"hh\.jsonl:1: unknown format of a completion")
    refused(hh, "pairs", "out.jsonl", "--as pairs: expected one of prompts, preferences, completions, few-shot")
    refused(hh, "preferences", "out.csv", r"out\.csv: expected a name that ends in")
    refused(hh, "preferences", "hh.jsonl", r"hh\.jsonl: already exists")
    refused(tmp_path / "none.jsonl", "preferences", "out.jsonl", "no such file")
    same = tmp_path / "same.jsonl"
    same.write_text("".join(hh.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    refused(same, "preferences", "out.jsonl", r"no preferences in this file: 2 × chosen equals rejected$")
    (tmp_path / "out.skipped.jsonl").write_text("mine")
    refused(hh, "preferences", "out.jsonl", r"out\.skipped\.jsonl: already exists")


def test_demonstrations_become_a_few_shot_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demonstration = (
        "\n\nHuman: a\n\nAssistant: b\n\nCritiqueRequest: c\n\nCritique: d\n\nRevisionRequest: e\n\nRevision: f"
    )
    (tmp_path / "few.json").write_text(json.dumps([demonstration]))
    import_(str(tmp_path / "few.json"), "few-shot", tmp_path / "few_shot.yaml")
    assert "6 turns under revision:" in capsys.readouterr().out
    with pytest.raises(CaiError, match="already exists"):
        import_(str(tmp_path / "few.json"), "few-shot", tmp_path / "few_shot.yaml")


def pairs_of_ours(folder: Path) -> Path:
    """Two pairs: a soft one about a system message, and an undecided one."""
    soft = {"prompt_id": "x", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}],
            "chosen": "so", "rejected": "no", "p": 0.25, "weight": 2.0, "source": "judge"}  # fmt: skip
    rows = [soft, {**soft, "prompt_id": "y", "p": 0.5}]
    (folder / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "ours.jsonl"


def test_a_file_is_written_in_an_external_format_with_a_notice_of_lost_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hh.jsonl"
    export_file(str(pairs_of_ours(tmp_path)), "hh-rlhf", out, tmp_path / "runs")
    [row] = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert row == {"chosen": HH.format("Why?", "no"), "rejected": HH.format("Why?", "so")}
    [rest] = read_rows(tmp_path / "hh.skipped.jsonl", Skipped)
    assert (rest.prompt_id, rest.reason) == ("y", "p is 0.5: neither answer is better")
    said = capsys.readouterr()
    assert "skipped: 1 × p is 0.5: neither answer is better (y)" in said.out
    assert said.err.endswith("ids (1), system messages (1), soft labels (1), weights (1)\n")


def test_annotated_pairs_are_one_document(tmp_path: Path) -> None:
    out = tmp_path / "annotated.json"
    export_file(str(pairs_of_ours(tmp_path)), "annotated-pairs", out, tmp_path / "runs")
    assert len(json.loads(out.read_text(encoding="utf-8"))["comparisons"]) == 2


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    ours, prompts = pairs_of_ours(tmp_path), tmp_path / "prompts.txt"
    prompts.write_text("Why?\n")
    undecided = tmp_path / "undecided.jsonl"
    undecided.write_text(ours.read_text(encoding="utf-8").splitlines()[1])

    def refused(source: object, format: str, out: str, expected: str) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(CaiError, match=expected):
            export_file(str(source), format, tmp_path / out, tmp_path / "runs")
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    refused(ours, "xml", "out.jsonl", "--format xml: expected one of cai, trl-preference, trl-implicit")
    refused(ours, "alpaca-eval", "out", "needs a run's evaluation, and this is a file")
    refused(ours, "cai-conversation", "out.jsonl", "needs a run's revisions, and this is a file")
    refused(ours, "kto", "out.txt", r"out\.txt: expected a name that ends in")
    refused(ours, "kto", "ours.jsonl", "already exists")
    refused(ours, "annotated-pairs", "ours.jsonl", "already exists")
    refused(prompts, "kto", "out.jsonl", r"prompts\.txt:1: unknown format of a preference")
    refused(undecided, "kto", "out.jsonl", "nothing to write as kto: 1 × p is 0.5")
    refused(
        "nothing", "kto", "out.jsonl", r"nothing: no such file; .*; nor is it a run in .*/runs/ \(runs there: none\)"
    )


def test_the_command_wants_a_format_or_a_data_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--format", "kto"], ["--out", "x.jsonl"], ["--to", "ds", "--format", "kto"], []):
        monkeypatch.setattr("sys.argv", ["cai", "export", "a-run", *options])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert "expected either --format NAME and --out FILE, or --to FOLDER or hub:org/name" in capsys.readouterr().err
    with pytest.raises(CaiError, match="no run 'a-run'"):
        export_dataset("a-run", str(tmp_path / "ds"), "unknown", tmp_path / "runs")
