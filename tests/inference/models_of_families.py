"""Tokenizers of model families with the families' own chat templates; chat_templates/README.md says where from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import Regex, pre_tokenizers

from tests.inference.tokenizers_of_families import gemma, llama3, mistral, qwen

HERE = Path(__file__).parent / "chat_templates"

QWEN_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""What Qwen splits texts into before BPE: line breaks in a row stay together, whatever follows them."""


class Family(NamedTuple):
    """How a family's tokenizer is made, and what is special about its chat template."""

    make: Callable[[], Any]
    thinks: bool = False  # by default, unless enable_thinking is false
    system: bool = True  # takes a system message


def of_trl(name: str) -> str:
    """A model's own template, as the package trl has it, to know models by."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def of_mistral() -> str:
    """The template of Mistral's seventh tokenizer version (Mistral Small 3), as mistral_common generates it."""
    templates = pytest.importorskip("mistral_common.integrations.chat_templates.chat_templates")
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    nothing = {"default_system_prompt": None, "reasoning_effort_values": None, "reasoning_effort_default": None}
    kinds = ("spm", "image_support", "audio_support", "thinking_support", "plain_thinking_support")
    return str(
        templates.generate_chat_template(
            tokenizer_version=TokenizerVersion.v7,
            use_special_token_variables=True,
            model_settings_fields=None,
            **nothing,
            **dict.fromkeys(kinds, False),
        )
    )


def chatml(template: str, *more: str) -> Any:
    """Qwen's tokenizer, in which the turns' marks are special and the last one ends a text, as in released models."""
    tokenizer = qwen()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *more]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = template
    return tokenizer


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def phi3() -> Any:
    """Phi-3's marks, and another token that ends a text: the template writes it behind every answered conversation."""
    tokenizer = chatml(of_trl("phi3"), "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def cohere2() -> Any:
    """Command R7B's marks, two of which end an answer."""
    marks = ("START_RESPONSE", "END_RESPONSE", "START_OF_TURN_TOKEN", "END_OF_TURN_TOKEN", "USER_TOKEN", "SYSTEM_TOKEN")
    tokenizer = chatml(of_trl("cohere2"), *(f"<|{mark}|>" for mark in (*marks, "CHATBOT_TOKEN")), "<BOS_TOKEN>")
    tokenizer.bos_token, tokenizer.eos_token = "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"
    return tokenizer


FAMILIES = {
    "llama3": Family(lambda: with_template(llama3(), of_trl("llama3"))),
    "qwen3": Family(lambda: chatml(of_trl("qwen3")), thinks=True),
    "gemma": Family(lambda: with_template(gemma(), of_trl("gemma")), system=False),
    "gemma3": Family(lambda: with_template(gemma(), of_trl("gemma3"))),
    "mistral": Family(lambda: with_template(mistral(), of_mistral())),
    "phi3": Family(phi3),
    "qwen2.5": Family(lambda: chatml(of_trl("qwen2_5"))),  # with a default system prompt
    "cohere2": Family(cohere2),
    "phi4": Family(lambda: chatml((HERE / "phi4.jinja").read_text(), "<|im_sep|>")),
    "smollm3": Family(lambda: chatml((HERE / "smollm3.jinja").read_text()), thinks=True),
}

UNLIKE = {
    "deepseek_r1": Family(lambda: chatml(of_trl("deepseek_r1_distill"), "<｜User｜>", "<｜Assistant｜>")),
    "gpt_oss": Family(
        lambda: chatml(of_trl("gptoss"), "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
    ),
    "nemotron": Family(lambda: chatml(of_trl("nemotron_3_nano")), thinks=True),
    "qwen3_8": Family(lambda: chatml(of_trl("qwen3_8")), thinks=True),
}
"""Families whose templates write an answer otherwise than inference makes one, those that think unless told not to."""
