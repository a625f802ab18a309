"""Training a LoRA over weights in 4 or 8 bits, by bitsandbytes: QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

The trained LoRA is merged into the weights as they were before quantization, so that the saved policy is a plain model.
Light to import: no torch.
"""

from typing import Any, Literal

PACKAGE = "bitsandbytes"
Bits = Literal["4bit", "8bit"]


def quantized(bits: Bits, dtype: Any, device: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantize a model on `device` as it is loaded.

    4bit: NF4 with quantized constants, computing in `dtype` (QLoRA §3); 8bit: LLM.int8() (Dettmers et al. 2022,
    arXiv:2208.07339), which quantizes activations too.
    """
    from transformers import BitsAndBytesConfig

    if device == "cpu":
        _keep_gradients()
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if bits == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _keep_gradients() -> None:
    """On a CPU with AVX-512 for bfloat16, bitsandbytes 0.50 repacks 4-bit weights in the first pass without gradients,
    and later passes through them have none, without an error: let it not find these instructions.
    """
    from bitsandbytes.nn import modules

    modules.has_avx512bf16 = lambda: False
