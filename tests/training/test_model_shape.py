"""Shapes of models from config.json and the headers of their weights."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.training.model_shape import read_shape, shape_in, shape_of, tensor_shapes

LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
QWEN = {"model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "head_dim": 128,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": False}  # fmt: skip


def test_parameters_of_public_models_follow_from_their_config() -> None:
    assert shape_of("Llama 3.1 8B", LLAMA).parameters == 8_030_261_248  # as their files have on the Hub
    assert shape_of("Qwen3 32B", QWEN).parameters == 32_762_123_264
    tied = LLAMA | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    }
    assert shape_of("Llama 3.2 1B", tied).parameters == 1_235_814_400


def test_config_and_headers_agree(tiny_model: Path, tmp_path: Path) -> None:
    by_headers = shape_in("tiny", tiny_model)
    shutil.copy(tiny_model / "config.json", tmp_path)
    by_config = shape_in("tiny", tmp_path)
    assert sorted(by_headers.linear) == sorted(by_config.linear)
    assert by_headers._replace(linear=()) == by_config._replace(linear=())
    from transformers import AutoModelForCausalLM

    assert by_config.parameters == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_local_experts": 8}, "num_local_experts is 8; the estimate covers dense models"),
        (
            {"model_type": "phi"},
            "config.json: the MLPs of phi have no gate; the estimate covers decoders with gated MLPs",
        ),
        ({"num_experts": "many"}, 'num_experts is "many"; the estimate covers dense models'),
        ({"text_config": "none"}, 'text_config: expected an object, found "none"'),
        ({"quantization_config": {}}, "its weights are quantized"),
        ({"hidden_size": None}, "hidden_size: expected a positive number, found null"),
        ({"num_hidden_layers": "many"}, 'num_hidden_layers: expected a positive number, found "many"'),
    ],
)
def test_a_model_that_is_not_covered_is_an_error_with_its_reason(more: dict[str, Any], message: str) -> None:
    with pytest.raises(CaiError, match=message):
        shape_of("x", LLAMA | more)


def test_an_mlp_without_a_gate_is_not_covered() -> None:
    with pytest.raises(CaiError, match="no gate_proj"):
        shape_of("x", LLAMA, {"model.layers.0.mlp.fc1.weight": (14336, 4096)})


def test_a_hub_id_is_read_from_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaiError, match=r"not in the Hub's cache.*`hf download org/model config.json`"):
        read_shape("org/model")
    snapshot = tmp_path / "models--org--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    assert read_shape("org/model").parameters == 8_030_261_248


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"[]",
                                     struct.pack("<Q", 8) + b'{"a": 1}', struct.pack("<Q", 9) + b"\xff" * 9])  # fmt: skip
def test_a_damaged_header_names_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CaiError, match=r"model\.safetensors: not safetensors"):
        tensor_shapes(path)
