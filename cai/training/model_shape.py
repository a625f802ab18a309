"""The sizes of a model that decide how much memory its training takes, read without its weights. Imports no torch."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cai.config.errors import CaiError, reading
from cai.config.locate import is_hub_id
from cai.data.manifest import brief, read_json
from cai.inference.models import resolve_model

CONFIG = "config.json"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # of mixtures in config.json
TIED = ("gemma",)  # beginnings of model types whose head is the embedding where config.json does not say
QUERY_NORMS = ("qwen3", "gemma3", "olmo2")  # of those that normalise queries and keys
FOUR_NORMS = ("gemma2", "gemma3")  # of those with a norm before and after attention and MLP
QUERY_BIASES = ("qwen2",)  # of those whose queries, keys and values have a bias
UNGATED = ("apertus", "arcee", "biogpt", "gpt_neox", "jais2", "nanochat", "nemotron", "persimmon", "phi", "starcoder2")
"""Model types of transformers 5.19 whose sizes have the names of gated MLPs' and whose MLPs have no gate."""
FIRST_LAYER = ".layers.0."
LONGEST_HEADER = 10**8  # bytes of a safetensors header, which the format itself allows


class Linear(NamedTuple):
    """A linear layer: the end of its name, such as q_proj, and its sizes."""

    name: str
    inputs: int
    outputs: int


class ModelShape(NamedTuple):
    """A decoder with gated MLPs, as Llama, Qwen, Mistral and Gemma are."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    parameters: int
    """In all; a head that is the embedding counts once."""
    tied: bool
    linear: tuple[Linear, ...]
    """Of one layer."""
    norms: int
    """Of one layer, over hidden states."""
    query_norms: bool
    """Whether queries and keys are normalised too."""
    softcapped: bool
    """Whether attention scores have a soft-cap, for which cai computes them by `eager` attention."""

    @property
    def queries(self) -> int:
        """Numbers in the queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers in the keys of a token, and in its values."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and as many of a head of its own."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Of the linear layers of one layer."""
        return sum(linear.inputs * linear.outputs for linear in self.linear)


def read_shape(name: str) -> ModelShape:
    """The shape of a model by name: the small one, a folder, or a Hub id whose config.json is in the cache.

    The weights need not be there: their sizes then follow from config.json.
    Raises: CaiError for a config.json that is missing or not of such a decoder.
    """
    if is_hub_id(name) and not Path(name).exists():
        return shape_in(name, _cached(name))
    folder = Path(name)
    return shape_in(name, folder if (folder / CONFIG).exists() else resolve_model(name))


def shape_in(name: str, folder: Path) -> ModelShape:
    """The shape of the model in `folder`, which `name` stands for in messages."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= tensor_shapes(path)
    return shape_of(name, read_json(folder / CONFIG), shapes)


def shape_of(name: str, config: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]] | None = None) -> ModelShape:
    """The shape that a config.json describes; `weights` are the shapes of its tensors by name, where they are known.

    Raises: CaiError for a missing size, a mixture of experts, MLPs without a gate, and weights that are quantized
    already.
    """
    text, place = config.get("text_config") or config, f"model '{name}': {CONFIG}"
    if not isinstance(text, Mapping):
        raise CaiError(f"{place}: text_config: expected an object, found {brief(text)}")
    if experts := next((key for key in EXPERTS if text.get(key) not in (None, 0, 1)), None):
        raise CaiError(f"{place}: {experts} is {brief(text[experts])}; the estimate covers dense models, not mixtures")
    if "quantization_config" in config:
        raise CaiError(f"{place}: its weights are quantized; the estimate starts from weights that are not")

    def size(key: str, otherwise: int | None = None) -> int:
        value = text.get(key, otherwise)
        value = otherwise if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CaiError(
                f"{place}: {key}: expected a positive number, found {brief(value)}; the estimate covers decoders with "
                "gated MLPs, such as Llama, Qwen, Mistral and Gemma"
            )
        return value

    kind = str(text.get("model_type", ""))
    if kind in UNGATED:
        raise CaiError(f"{place}: the MLPs of {kind} have no gate; the estimate covers decoders with gated MLPs")
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    shape = ModelShape(
        name=name,
        hidden=hidden,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        intermediate=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        parameters=0,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind.startswith(TIED)))),
        linear=(),
        norms=4 if kind.startswith(FOUR_NORMS) else 2,
        query_norms=kind.startswith(QUERY_NORMS),
        softcapped=bool(text.get("attn_logit_softcapping")),
    )
    return _of_config(shape, kind, text) if not weights else _of_weights(shape, weights, place)


def _of_config(shape: ModelShape, kind: str, text: Mapping[str, Any]) -> ModelShape:
    """With the parameters that follow from its sizes."""
    h, a, k, f = shape.hidden, shape.queries, shape.keys, shape.intermediate
    names = (
        ("q_proj", h, a), ("k_proj", h, k), ("v_proj", h, k), ("o_proj", a, h),
        ("gate_proj", h, f), ("up_proj", h, f), ("down_proj", f, h),
    )  # fmt: skip
    shape = shape._replace(linear=tuple(Linear(*sizes) for sizes in names))
    small = shape.norms * h + (2 * shape.head_dim if shape.query_norms else 0)
    if text.get("attention_bias") or kind.startswith(QUERY_BIASES):
        small += a + 2 * k
    outside = shape.embedding * (1 if shape.tied else 2) + h
    return shape._replace(parameters=shape.layers * (shape.layer_parameters + small) + outside)


def _of_weights(shape: ModelShape, weights: Mapping[str, tuple[int, ...]], place: str) -> ModelShape:
    """With the parameters of its tensors."""
    first = {name.partition(FIRST_LAYER)[2]: sizes for name, sizes in weights.items() if FIRST_LAYER in name}
    linear = tuple(
        Linear(name.removesuffix(".weight").rpartition(".")[2], sizes[1], sizes[0])
        for name, sizes in first.items()
        if len(sizes) == 2
    )
    if not any("gate" in layer.name for layer in linear):
        raise CaiError(f"{place}: its layers have no gate_proj; the estimate covers decoders with gated MLPs")
    norms = [name for name, sizes in first.items() if sizes == (shape.hidden,) and "norm" in name]
    counted = {name: sizes for name, sizes in weights.items() if not (shape.tied and name == "lm_head.weight")}
    return shape._replace(
        parameters=sum(math.prod(sizes) for sizes in counted.values()),
        tied="lm_head.weight" not in counted,
        linear=linear,
        norms=len(norms),
        query_norms=any(name.endswith("q_norm.weight") for name in first),
    )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a file of safetensors, by name; its first bytes alone are read."""
    with reading(path), path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER + 1
        try:
            header: Any = json.loads(file.read(length)) if length <= LONGEST_HEADER else None
            return {key: tuple(map(int, value["shape"])) for key, value in header.items() if key != "__metadata__"}
        except (ValueError, AttributeError, KeyError, TypeError):
            raise CaiError(f"{path}: not safetensors: its header names no shapes of tensors") from None


def _cached(name: str) -> Path:
    """The folder in the Hub's cache that holds the config.json of a Hub id; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CONFIG)
    if not isinstance(found, str):
        raise CaiError(
            f"model '{name}': its {CONFIG} is not in the Hub's cache, and an estimate downloads nothing; "
            f"run `hf download {name} {CONFIG}`, or name a folder that holds it"
        )
    return Path(found).parent
