"""Control tokens of model families, by the chat templates and tokenizers that their makers publish."""

import re
from pathlib import Path

MARKERS: dict[str, str] = {
    "ChatML (Qwen, SmolLM3, InternLM, Nemotron 3)": "<|im_start|> <|im_end|> <|endoftext|> <|action_start|>",
    "Qwen VL": "<|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> <|fim_prefix|>",
    "Llama 3": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>",
    "Llama 4": "<|header_start|> <|header_end|> <|eot|> <|image_start|> <|reserved_special_token_0|>",
    "Llama 2, LLaVA": "<s> </s> <unk> [INST] [/INST] <<SYS>> <</SYS>> <image>",
    "Mistral": "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[TOOL_CALLS] [TOOL_CONTENT] [ARGS] [CALL_ID] [THINK] [/THINK] [IMG] [IMG_BREAK] [IMG_END] [AUDIO] [BEGIN_AUDIO] "
    "[TRANSCRIBE] [PREFIX] [MIDDLE] [SUFFIX] [MODEL_SETTINGS] [/MODEL_SETTINGS] [STREAMING_PAD] [STREAMING_WORD] "
    "[NEXT_AUDIO_TEXT] [REPEAT_AUDIO_TEXT] <pad> <SPECIAL_20>",
    "Gemma": "<bos> <eos> <pad> <unk> <mask> <start_of_turn> <end_of_turn> <unused0>",
    "Gemma 3": "<start_of_image> <end_of_image> <image_soft_token> <start_of_audio> <end_of_audio>",
    "Gemma 4": '<|turn> <turn|> <|channel> <channel|> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> '
    '<tool_response|> <|think|> <|"|> <|image|> <|audio|> <|video|>',
    "Phi": "<|system|> <|user|> <|assistant|> <|end|> <|im_sep|> <|placeholder1|>",
    "DeepSeek": "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁sep｜> "
    "<|EOT|> <｜▁pad▁｜>",
    "GLM": "[gMASK] [sMASK] [MASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> <|begin_of_image|>",
    "Command R, Aya": "<BOS_TOKEN> <EOS_TOKEN> <EOP_TOKEN> <MASK_TOKEN> <PAD> <UNK> <CLS> <SEP> <|START_OF_TURN_TOKEN|> "
    "<|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> <|START_RESPONSE|> <|USER_0_TOKEN|>",
    "gpt-oss": "<|start|> <|channel|> <|message|> <|call|> <|return|> <|constrain|> <|end|> <|startoftext|>",
    "Seed-OSS": "<seed:bos> <seed:eos> <seed:pad> <seed:think> </seed:think> <seed:tool_call> <seed:cot_budget_reflect>",
    "MiniMax": "]~!b[ ]~b] [e~[ ]!p~[ ]!d~[ ]<]speech[>[ ]<]image[>[ <beginning_of_sentence> <end_of_sentence>",
    "Nemotron Nano 2": "<SPECIAL_10> <SPECIAL_11> <SPECIAL_12>",
    "Nemotron 4, T5": "<extra_id_0> <extra_id_1>",
    "Kimi": "[BOS] [EOS] [EOT] [PAD] [UNK] [start_header_id] [end_header_id] <|im_user|> <|im_middle|> <|im_assistant|>",
    "EXAONE": "[|system|] [|user|] [|assistant|] [|tool|] [|endofturn|] [BOS]",
    "Granite": "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|tool_call|>",
    "Hunyuan": "<｜hy_begin▁of▁sentence｜> <｜hy_User｜> <｜hy_place▁holder▁no▁3｜> <|extra_0|>",
    "Ling": "<role> </role> <|role_end|> <|arithmetic_start|>",
    "Baichuan": "<reserved_106> <reserved_107>",
    "Falcon": ">>QUESTION<< >>ANSWER<< >>TITLE<< <|endoftext|>",
    "Falcon, StarCoder": "<fim_prefix> <fim_middle> <fim_suffix> <fim_pad>",
    "Idefics, SmolVLM": "<end_of_utterance> <fake_token_around_image> <image> <global-img> <row_1_col_2>",
    "MiniCPM": "<用户> <AI>",
    "Pangu": "[unused9] [unused10]",
    "PLaMo": "<|plamo:tag|> <|plamo:begin_tool_name:plamo|>",
    "K2": "<ifm|think> </ifm|think> <ifm|tool_calls>",
    "LFM2": "<|startoftext|> <|tool_list_start|> <|tool_response_end|> <|tool_call_start|>",
    "BERT": "[CLS] [SEP] [MASK] [PAD] [UNK]",
}  # fmt: skip
"""Families with their control tokens; those of MiniMax with a space in them apart."""
WITH_BARS = re.compile(r"<[|｜][^<>\s]{1,40}>|<\w{1,40}[|｜]>")


def markers(family: str) -> list[str]:
    """A family's control tokens, each once."""
    spaced = ["]<]start of image[>[", "]<]end of video[>["] if family == "MiniMax" else []
    return [*dict.fromkeys(MARKERS[family].split()), *spaced]


def published_templates() -> list[Path]:
    """The chat templates in trl, copies of those of their models."""
    import trl

    return sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
