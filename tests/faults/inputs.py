"""Inputs that break programs: valid files with one or more values, keys or bytes replaced, and what reads them.

`TARGETS` are the readers; each takes what its strategy draws and a folder of its own, and must succeed or raise a
CaiError that names the file or the option.
"""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st

from cai.constitution.external import read_external, read_few_shot
from cai.constitution.principles import load_constitution
from cai.constitution.templates import ADDED, BLOCKS, OF_TESTS, Templates
from cai.data.jsonl import read_rows
from cai.data.manifest import read_manifest
from cai.data.preferences import iter_preferences, read_candidates
from cai.data.prompts import iter_completions, iter_prompts
from cai.data.records import Preference, Revision
from cai.report.serve import Library, respond
from cai.runs.plan import make_plan
from cai.runs.run_file import load_run_file
from cai.runs.sweep import make_sweep
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec, convert_data, stage_settings_class
from tests.conftest import ROOT

TEXTS = (
    "", " ", "x", "a/b", "..", "/", ".", "\0", "\n", "\t", "\ufeff", "\ud800", "\udcff", "\x1b[31m", "\u202e", "é" * 200, "a" * 300,
    "(A)", " (A)", "\n\nHuman: x", "\n\nHuman: x\n\nAssistant: y", "\n\nAssistant:", "{{ x }}", "{% raw %}", "²", "٣", "1", "-1", "1e999",
    "nan", "null", "true", "2024-13-45", "http://[", "http://h:99999#m", "a#b", "user", "assistant", "system", "a", "b", "2.0", "dpo", "ppo",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    2,
    0.5,
    1.5,
    -0.0,
    1e-320,
    1e308,
    2**31,
    2**63,
    2**64,
    10**299,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
)
PIECES = (
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b"  ", b": ", b"- ", b"? ", b"[", b"]", b"{", b"}",
    b'"', b"'", b"`", b"&a ", b"*a", b"<<: ", b"!!int ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!set ", b"!!float ", b"!x ", b"|", b">",
    b"%YAML 9\n", b"---\n", b"...\n", b"#", b"~", b"9" * 4500, b"0x" + b"f" * 4500, b"1:" * 50, b".nan", b".inf", b"2024-13-45", b"\\ud800",
    b"NaN", b"Infinity", b"-Infinity", b",", b"{% block x %}", b"{{ a.__class__ }}", b"{% for i in range(9**9) %}", b"{% include 'x' %}",
    b"[" * 3000, b"- " * 3000, b"\x1f\x8b", b"(\xb5/\xfd", b"PAR1", b"\xe2\x80\xae", b"\x1b[2J",
)  # fmt: skip

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(
        ([], {}, [[]], [None], [1], ["x"], {"": 1}, {"a": {"b": []}}, [{}], {"role": "user", "content": "x"})
    ),
    st.text(max_size=8),
).map(copy.deepcopy)  # what is drawn is changed further


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The steps to every value inside a value, itself included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in inside for place in places(child, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn, examples: list[Any]) -> Any:
    """One of the examples with up to three values replaced, removed, added or put under another key."""
    value = json.loads(json.dumps(draw(st.sampled_from(examples))))
    for _ in range(draw(st.integers(0, 3))):
        *path, last = (None, *draw(st.sampled_from(places(value))))
        if not path:
            return draw(odd)
        holder = value
        for step in path[1:]:
            holder = holder[step]
        what = draw(st.sampled_from(("replace", "replace", "remove", "rename", "wrap")))
        if what == "replace":
            holder[last] = draw(odd)
        elif what == "wrap":
            holder[last] = draw(st.sampled_from(([holder[last]], {"x": holder[last]}, str(holder[last]))))
        else:
            removed = holder.pop(last)
            if what == "rename" and isinstance(holder, dict):
                holder[draw(st.sampled_from((*TEXTS, "stage", "id", "prompt", "messages", "label")))] = removed
    return value


@st.composite
def corrupted(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's content with up to three pieces inserted, removed or put in place of others."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from((0, 0, 1, 2, 8, 10**6))))
        content = content[:start] + draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4))) + content[end:]
    return content


@st.composite
def written(draw: st.DrawFn, examples: list[Any], forms: tuple[str, ...]) -> bytes:
    """A mutated example as YAML, JSON, or JSON Lines, with its bytes corrupted or not."""
    value, form = draw(mutated(examples)), draw(st.sampled_from(forms))
    if form == "yaml":
        try:
            text = yaml.safe_dump(value, allow_unicode=draw(st.booleans()))
        except ValueError:  # a number of too many digits
            text = json.dumps(repr(type(value)))
    elif form == "jsonl" and isinstance(value, list):
        text = "\n".join(map(json.dumps, value))
    else:
        text = json.dumps(value, indent=draw(st.sampled_from((None, 1))))
    content = text.encode("utf-8", "surrogatepass")
    return draw(corrupted(content)) if draw(st.booleans()) else content


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PRINCIPLE = {"id": "a", "critique": "c", "revision": "r", "judge": "j", "weight": 2, "tags": ["t"], "notes": "n"}
TEST = {
    "prompt": "p",
    "draft": "d",
    "critique": "finds",
    "revision": {"contains": ["x"], "lacks": ["y"]},
    "better": "b",
}
CONSTITUTION = {
    "name": "n",
    "description": "d",
    "principles": [
        {**PRINCIPLE, "tests": [TEST]},
        {**PRINCIPLE, "id": "b"},
        {**PRINCIPLE, "id": "c", "applies_to": {"tags": ["t"], "question": "Is it so?"}},
    ],
}
STAGES: list[Any] = [
    {"stage": "sft", "mix_share": 0.5},
    {"stage": "reward", "members": 2, "holdout": 0.1},
    {"stage": "ppo", "updates": 2, "target_kl": 6},
    {"stage": "dpo", "loss_type": "robust", "label_smoothing": 0.1},
    {"stage": "grpo", "num_generations": 2, "per_device_train_batch_size": 2},
]
RUN = {
    "name": "r",
    "seed": 1,
    "model": "model",
    "constitution": "c.yaml",
    "templates": "prompts/default",
    "prompts": {"source": "p.jsonl", "limit": 4, "holdout": 0.25},
    "revise": {"rounds": 1},
    "judge": {"principles": 1, "swap": True, "samples": 2},
    "train": STAGES,
    "evaluate": {"constitution": "c.yaml"},
    "engine": {"concurrency": 4, "max_model_len": 2048},
    "launcher": "true",
}
SWEEP = {
    "name": "s",
    "run": "run.yaml",
    "set": {"revise.rounds": 1},
    "grid": {"seed": [1, 2], "constitution": ["c.yaml"]},
}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b", "p": 0.7, "weight": 2, "tags": ["t"], "id": "i"}
ANNOTATED = {
    "metadata": {"version": "2.0", "default_annotator": "d"},
    "annotators": {"d": {"name": "n", "description": "x", "type": "human"}},
    "comparisons": [
        {
            "id": "1",
            "prompt": "q",
            "response_a": {"text": "x"},
            "response_b": {"text": "y"},
            "annotations": {"d": {"pref": "a"}},
        }
    ],
}
ROWS: list[Any] = [
    [PAIR, PAIR],
    [{"id": "1", "prompt": "q", "tags": ["t"]}, {"id": "2", "messages": TURNS[:1], "subset": "s"}],
    [{"messages": TURNS, "prompt": "q"}, {"prompt": "q", "completion": "a"}, {"prompt": TURNS[:1], "completion": TURNS[1:]}],
    [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}],
    [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}],
    [{"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}], "score_chosen": 1, "score_rejected": 2}],
    [{"prompt": "q", "responses": ["a", "b", "c"]}],
    [{"prompt": "\n\nHuman: q\n Options:\n (A) [[[x]]]\n (B) [[[y]]]", "corrects": [" (A)"], "incorrects": [" (B)"]}],
    [{"prompt": "q", "corrects": ["a whole"], "incorrects": ["another"], "text_correct": "x", "text_incorrect": "y"}],
    [{"input": {"messages": TURNS[:1]}, "preferred_output": TURNS[1:], "non_preferred_output": [{"role": "assistant", "content": "b"}]}],
    [{"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5, "input": "i", "dataset": "d", "annotator": "x"}],
    [{"instruction": "q", "output": "a", "generator": "g"}],
    [{"init_prompt": "q", "init_response": "a", "chosen": TURNS, "rejected": TURNS, "messages": TURNS}],
    [{"question_id": 1, "category": "c", "turns": ["q", "r"]}, {"transcript": "\n\nHuman: q", "tags": None}],
    [{"prompt_id": "p", "messages": TURNS[:1], "responses": ["a", "b"], "strengths": [1.0, 0.0], "model": "m", "judge": "j", "seed": 1}],
    [{"prompt_id": "p", "messages": TURNS[:1], "chosen": "a", "rejected": "b", "p": 0.5, "source": "human", "seeds": [1], "verdicts": []}],
    [{"prompt_id": "p", "messages": TURNS[:1], "round": 1, "principle_id": "a", "draft": "d", "critique": "c", "revision": "r", "seed": 1}],
    [ANNOTATED],
    ANNOTATED,
]  # fmt: skip
EXTERNAL: list[Any] = [
    {"a": {"prompt": ["\n\nCritiqueRequest: x\n\nCritique:"], "edit_request": "\n\nRevisionRequest: y\n\nRevision:"}},
    ["\nChoose the better. Options:", "x"],
    {"constitutions": [{"critic": "c", "revision": "r"}], "system_chat": [TURNS]},
    ["\n\nHuman: q\n\nAssistant: a\n\nCritiqueRequest: x\n\nCritique: c\n\nRevisionRequest: y\n\nRevision: r"],
    [{"prompt": "\n\nHuman: q\n\nAssistant:", "corrects": ["good answer"], "incorrects": ["bad answer"]}],
    [
        {
            "prompt": "Consider:\n\nH: q\n\n{}\n (A) [[[x]]]\n (B) [[[y]]]\n\nAssistant: step\n\nHuman:\nSo the answer is: (B)"
        }
    ],
]
FEW_SHOT = {"revision": TURNS, "judge": TURNS}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz", ".json.zst", ".parquet")
READERS: dict[str, Callable[[Path], object]] = {
    "prompts": lambda path: list(iter_prompts(path)),
    "completions": lambda path: list(iter_completions(path)),
    "preferences": lambda path: list(iter_preferences(path)),
    "candidates": lambda path: list(read_candidates(path, ranked=False)),
    "rankings": lambda path: list(read_candidates(path, ranked=True)),
    "cai preferences": lambda path: read_rows(path, Preference),
    "cai revisions": lambda path: read_rows(path, Revision),
    "training data": lambda path: convert_data(SFTConfig(stage="sft"), path, path.parent / "rows.out"),
}


class Target(NamedTuple):
    """What is attacked: how its inputs are drawn, and what reads one in a folder of its own."""

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]
    names_file: bool = True  # in every error
    share: int = 10  # of the inputs of a long attack, relative to the other targets'


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def workspace(folder: Path) -> None:
    """What run files and sweeps name; written once."""
    if (folder / "run.yaml").exists():
        return
    (folder / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / "model" / name).write_text("{}", encoding="utf-8")
    (folder / "c.yaml").write_text(json.dumps(CONSTITUTION), encoding="utf-8")
    (folder / "run.yaml").write_text(json.dumps({**RUN, "train": []}), encoding="utf-8")
    (folder / "p.jsonl").write_text("".join(f'{{"id": "{i}", "prompt": "q{i}"}}\n' for i in range(4)), encoding="utf-8")


def plan(content: bytes, folder: Path) -> object:
    workspace(folder)
    return make_plan(put(folder, "fuzzed.yaml", content), [], None, folder / "runs")


def plan_overridden(overrides: list[str], folder: Path) -> object:
    workspace(folder)
    return load_run_file(folder / "run.yaml", overrides)


def sweep(content: bytes, folder: Path) -> object:
    workspace(folder)
    return make_sweep(put(folder, "sweep.yaml", content), [], folder / "runs", folder / "aside")


def templates(files: dict[str, bytes], folder: Path) -> object:
    for name, content in files.items():
        put(folder, name, content)
    return Templates(folder, (*OF_TESTS, *ADDED))


def data(drawn: tuple[str, str, bytes], folder: Path) -> object:
    suffix, reader, content = drawn
    if suffix.endswith(".gz"):
        content = gzip.compress(content) if len(content) % 3 else gzip.compress(content)[:-5] + content[:5]
    return READERS[reader](put(folder, f"rows{suffix}", content))


def table(drawn: tuple[list[Any], Any, str], folder: Path) -> object:
    import pyarrow
    from pyarrow import parquet

    records, extra, reader = drawn
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in records for key in row):
        values = [row.get(name) for row in records]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, UnicodeError, ValueError):
            columns[name] = pyarrow.array([extra] * len(values))
    try:
        parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    except (pyarrow.ArrowNotImplementedError, UnicodeError):  # a mapping without keys; half a surrogate pair as a name
        return None
    return READERS[reader](folder / "rows.parquet")


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Any], Any, str]:
    import datetime
    import decimal

    rows = draw(mutated([example for example in ROWS if isinstance(example, list)]))
    records = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    extra = draw(
        st.sampled_from(
            (
                b"\xff",
                b"x",
                decimal.Decimal("1.5"),
                datetime.date(2024, 1, 1),
                datetime.timedelta(1),
                {"a": b"x"},
                [b"x"],
            )
        )
    )
    for row in records:
        if row and draw(st.booleans()):
            row[draw(st.sampled_from(sorted(row)))] = extra
    return records, extra, draw(st.sampled_from(sorted(READERS)))


SOURCES = {f"{name}.jinja": (ROOT / f"prompts/default/{name}.jinja").read_bytes() for name in (*OF_TESTS, *ADDED)}
SOURCES["few_shot.yaml"] = json.dumps(FEW_SHOT).encode()
overrides = st.lists(
    st.builds(
        lambda key, sign, value: f"{key}{sign}{value}",
        st.one_of(
            st.sampled_from(("seed", "train", "train.0", "train.0.stage", "train.².x", "prompts.limit", "judge", "name", "engine.vllm")),
            st.lists(st.sampled_from((*RUN, *TEXTS, "0", "9" * 5000)), max_size=3).map(".".join),
        ),
        st.sampled_from(("=", "=", "=", "", "==")),
        st.one_of(
            st.sampled_from((*TEXTS, "[]", "{}", "[{}]", "[{stage: ppo}]", "&a [*a]", "!!int ''", "9" * 5000, "0x" + "f" * 5000, "[" * 3000)),
            odd.map(lambda value: json.dumps(value)[:99]),
        ),
    ),
    max_size=3,
)  # fmt: skip
settings_of_stage = st.tuples(st.sampled_from(["sft", "reward", "ppo", "dpo", "grpo", "x", ""]), mutated(STAGES))
requests = st.one_of(
    st.text(max_size=30),
    st.builds(
        lambda path, query: f"{path}?{query}",
        st.sampled_from(("/", "/report", "/examples", "/assets/..", "/assets/report.js", "//x", "/report/../..", "http://[", "/%00")),
        st.one_of(
            st.sampled_from(("run=r", "run=../..", "run=%00", "run=r&id=x", "run=r&run=r", "run=r&query={}", "run=r&query=%5B%5D", "run=" + "a" * 300)),
            odd.map(lambda value: f"run=r&query={json.dumps(value)[:99]}"),
            st.text(max_size=20),
        ),
    ),
)  # fmt: skip


def stage(drawn: tuple[str, Any], folder: Path) -> object:
    kind, settings = drawn
    stage_settings_class(kind)
    path = put(
        folder,
        "stage.json",
        json.dumps({"settings": settings, "data": "d", "model": "m", "folder": ".", "seed": 1}).encode(),
    )
    return StageSpec.read(path)


def served(target: str, folder: Path) -> object:
    (folder / "runs/r").mkdir(parents=True, exist_ok=True)
    (folder / "runs/r/manifest.json").write_text('{"command": "cai run"}', encoding="utf-8")
    return respond(Library(folder / "runs"), target)


yaml_or_json = ("yaml", "json")
TARGETS: dict[str, Target] = {
    "constitutions": Target(written([CONSTITUTION], yaml_or_json), lambda c, f: load_constitution(put(f, "c.yaml", c))),
    "run files": Target(written([RUN], yaml_or_json), plan, share=4),
    "overrides": Target(overrides, plan_overridden, names_file=False),
    "sweeps": Target(written([SWEEP], yaml_or_json), sweep, share=2),
    "templates": Target(
        st.fixed_dictionaries({name: corrupted(source) for name, source in SOURCES.items() if name != "few_shot.yaml"}
                              | {"few_shot.yaml": written([FEW_SHOT], yaml_or_json)}),
        templates,
        share=4,
    ),
    "data": Target(
        st.tuples(st.sampled_from(SUFFIXES), st.sampled_from(sorted(READERS)), written(ROWS, ("jsonl", "json"))), data, share=30
    ),
    "tables": Target(tables(), table),
    "constitutions of others": Target(written(EXTERNAL, ("json",)), lambda c, f: read_external(put(f, "c.json", c))),
    "demonstrations of others": Target(
        written(EXTERNAL, ("json",)),
        lambda c, f: read_few_shot(put(f, "few.json", c), SHIPPED_TEMPLATES),
    ),
    "manifests": Target(
        written([{"command": "cai run", "config": RUN}], ("json",)), lambda c, f: put(f, "manifest.json", c) and read_manifest(f)
    ),
    "stages": Target(settings_of_stage, stage, names_file=False),
    "addresses": Target(requests, served, names_file=False, share=5),
}  # fmt: skip
SHIPPED_TEMPLATES = Templates(ROOT / "prompts/default")
assert set(BLOCKS) <= {*OF_TESTS, *ADDED}
