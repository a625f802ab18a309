"""What many tests use: a tiny random model, a small workspace, the prepared real model."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from cai.config.hashing import fingerprint
from cai.constitution.principles import Constitution, load_constitution
from cai.constitution.templates import Templates
from cai.data.records import Message, Prompt
from cai.evaluation import scores
from cai.inference import servers
from cai.inference.engine import Choose, Engine, EngineConfig, Generate, ScriptedEngine, indifferent
from cai.inference.models import Model
from cai.inference.scheduler import OpenEngine
from cai.inference.vllm_settings import set_environment
from cai.training import scoring, stage, worker
from cai.training.stage import Ask, Report, StageSpec, nobody

# The same examples every time, so that a red build is about the change; and no deadlines on noisy machines.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("many", deadline=None, max_examples=1000)  # of `make fuzz`
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
SIXTEEN = ROOT / "tests/sixteen.yaml"
NO_BROWSER = "no browser"  # how the reason begins for which the tests of the pages are skipped
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last or m.role != 'assistant' or not continue_final_message %}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of pages in a browser are slow, whatever they do there."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Prints, below pytest's own summary, the coverage of all parts and how many tests of the pages were skipped."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    if config.getoption("cov_append", default=False):  # `make test`, whose last part this is
        print(f"coverage: {measured_coverage():.1f} % of the lines of cai/")
    skipped = sum(NO_BROWSER in str(report.longrepr) for report in reporter.stats.get("skipped", []))
    if skipped:
        print(f"{skipped} browser tests were skipped: `make browser` installs a browser for them")


def measured_coverage() -> float:
    """Per cent of the lines of cai/ that the tests just finished ran, in any process."""
    from coverage import Coverage

    coverage = Coverage()
    coverage.load()
    with Path(os.devnull).open("w") as nowhere:
        return coverage.report(file=nowhere, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_columns() -> None:
    """The width of what is printed is not that of the terminal in which the tests run."""
    os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def no_known_servers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No name of a model is kept from a server of an earlier test, which had the same port."""
    folder = tmp_path_factory.getbasetemp() / "servers" / fingerprint(str(request.node.nodeid))
    monkeypatch.setattr(servers, "cache_folder", lambda: folder)


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model gains nothing from more threads, and on a busy machine they wait for each other."""
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of training workers


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """A tiny model gains nothing from more threads, unless OMP_NUM_THREADS asks for them."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> Path:
    """A Llama of a few thousand random weights with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate([*specials, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = 512
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            pad_token_id=fast.pad_token_id,
            eos_token_id=fast.eos_token_id,
            bos_token_id=None,
        )
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray on this machine, as of a cluster that others started."""
    set_environment()
    ray = pytest.importorskip("ray")
    context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct, prepared once."""
    from cai.inference.models import prepare_small_model

    return prepare_small_model()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder that passes for a model as long as nothing loads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def harmless() -> Constitution:
    """Sixteen principles that apply to every prompt, which the shipped constitution's do not."""
    return load_constitution(SIXTEEN)


@pytest.fixture
def templates() -> Templates:
    return Templates(ROOT / "prompts/default")


def prompt(id: str = "p1", text: str = "How do I boil an egg?") -> Prompt:
    return Prompt(id=id, messages=[Message(role="user", content=text)], tags=["test"])


def write_workspace(folder: Path, model: Path, prompts: int = 8, extra: str = "") -> Path:
    """A run file with its prompts; returns the run file."""
    rows = [json.dumps({"id": f"p{i}", "prompt": f"Question number {i}?", "tags": ["t"]}) for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run_file = folder / "run.yaml"
    run_file.write_text(
        f"name: test\nmodel: {model}\nconstitution: {SIXTEEN}\n"
        f"prompts: {{source: {folder / 'prompts.jsonl'}, holdout: 0.25}}\n{extra}",
        encoding="utf-8",
    )
    return run_file


def train_here(spec: StageSpec[Any], report: Report = lambda event: None, ask: Ask = nobody) -> Path:
    """What run_stage does, in this process, which has long imported what takes a worker seven seconds."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    worker.train(spec, report, ask)
    return spec.folder / "model"


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains and scores in this process; test_stage.py and test_scores.py cover the workers' own processes."""

    def train(command: list[str], log: Path, report: Report, reply: Ask = nobody) -> None:
        worker.train(StageSpec.read(Path(command[-1])), report, reply)

    def score(command: list[str], log: Path, report: Report) -> None:
        scoring.score(scoring.ScoringSpec.model_validate_json(Path(command[-1]).read_bytes()), report)

    monkeypatch.setattr(stage, "follow", train)
    monkeypatch.setattr(scores, "follow", score)


def scripted(
    engines: list[ScriptedEngine] | None = None,
    answer: Callable[[Generate], str] | None = None,
    weigh: Callable[[Choose], Sequence[float]] = indifferent,
    delay: float = 0.0,
) -> OpenEngine:
    """An OpenEngine that opens scripted engines and adds them to `engines`."""

    def varied(request: Generate) -> str:
        return f"{request.seed} words that answer {request.messages[-1]['content'][:20]}"

    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        engine = ScriptedEngine(fingerprint, answer or varied, weigh, delay)
        if engines is not None:
            engines.append(engine)
        return engine

    return open_engine


def cached_answers(cache: Path) -> int:
    """How many answers a cache holds, while another process may be writing it."""
    try:
        with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
