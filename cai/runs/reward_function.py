"""Rewards by a reward model that cai trained, in the environment of verl or OpenRLHF, without cai.

verl calls `compute_score`, OpenRLHF `reward_func`. reward_function.json beside this file says where the model is. Each
process that calls them holds a copy of it, on its GPUs if it sees any; `python reward_function.py HOST:PORT` is one
process that holds it for all, with `"server": "http://HOST:PORT"` in that JSON.

Needs torch, transformers, peft and safetensors, with a GPU accelerate.
"""

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any
from urllib.request import Request, urlopen

BESIDE = Path(__file__).resolve().parent
THOUGHT = ("<think>", "</think>")
TIMEOUT = 600  # seconds that the server may take for an answer
TOKENIZING, LOADING = threading.Lock(), threading.Lock()


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any], **others: Any
) -> float:
    """The reward of an answer from verl, which passes its text without special tokens.

    It is truncated if it has as many tokens as an answer may have.
    """
    prompt = [int(token) for token in extra_info["prompt_ids"]]
    answer = encode(solution_str, as_text=True)
    return reward(prompt, solution_str, answer, len(answer) < settings()["max_tokens"])


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **others: Any) -> dict[str, Any]:
    """The rewards of answers from OpenRLHF, which passes prompt and answer as one text with special tokens."""
    import torch

    values = [
        query_reward(query, json.loads(label)["prompt_ids"]) for query, label in zip(queries, labels, strict=True)
    ]
    rewards = torch.tensor(values)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"reward_model": rewards}}


def query_reward(query: str, prompt: list[int]) -> float:
    """The reward of the answer in a text that begins with a prompt of these token ids."""
    asked = tokenizer().decode(prompt, skip_special_tokens=False)
    if not query.startswith(asked):
        raise ValueError(f"expected a text that begins with the prompt {asked[-80:]!r}, found {query[-200:]!r}")
    text, ended = query[len(asked) :], False
    for token in settings()["ends"]:
        mark = tokenizer().decode([token], skip_special_tokens=False)
        if text.endswith(mark):
            text, ended = text[: -len(mark)], True
            break
    return reward(prompt, text, encode(text), ended)


def reward(prompt: list[int], text: str, answer: list[int], ended: bool) -> float:
    """The reward of an answer with this text and these token ids, as cai's trainers take it."""
    chosen = settings()
    by_member = scores(conversation(prompt, text, answer))
    total: float = fmean(by_member) - chosen["uncertainty"] * pstdev(by_member)
    if chosen["score_clip"] is not None:
        total = max(-chosen["score_clip"], min(chosen["score_clip"], total))
    return total if ended else total - float(chosen["missing_eos_penalty"])


def conversation(prompt: list[int], text: str, answer: list[int]) -> list[int]:
    """What the reward model reads: the prompt and the answer up to the end of its turn, without a chain of thought."""
    lead, end = settings()["lead"], settings()["end"]
    if lead and answer[: len(lead)] == lead:
        return [*prompt, *answer, end]
    if text.lstrip().startswith(THOUGHT[0]):
        answer = encode(text.partition(THOUGHT[1])[2].strip(), as_text=True)
    return [*prompt, *lead, *answer, end]


def scores(ids: list[int]) -> list[float]:
    """The score of a conversation by each member of the reward model, here or by the server."""
    server = settings()["server"]
    if server is None:
        return members().scores(ids)
    asked = Request(server, json.dumps(ids).encode(), {"Content-Type": "application/json"})
    with urlopen(asked, timeout=TIMEOUT) as reply:
        return [float(score) for score in json.load(reply)]


class Members:
    """The reward model in memory: one copy of the weights with an adapter and a head for each member."""

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        import torch
        from transformers import AutoModel

        folder, self._lock = Path(chosen["reward_model"]), threading.Lock()
        gpu = torch.cuda.is_available()
        more = {"dtype": torch.bfloat16, "device_map": "auto"} if gpu else {"dtype": torch.float32}
        if chosen["attn_implementation"]:
            more["attn_implementation"] = chosen["attn_implementation"]
        weights = chosen["base"] or folder / chosen["members"][0]
        model = AutoModel.from_pretrained(weights, trust_remote_code=False, use_safetensors=True, **more)
        self._model = model.eval()
        self._heads = [(name, head(folder / name)) for name in chosen["members"]]
        self._adapted = chosen["base"] is not None
        if self._adapted:
            for name in chosen["members"]:
                self._add(name, folder / name)

    def _add(self, name: str, folder: Path) -> None:
        """Add the LoRA in `folder`. Its weights are named for a classifier, and go into the model without a head."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from safetensors.torch import load_file

        saved, root = LoraConfig.from_pretrained(folder), "base_model.model."
        weights = {
            key.removeprefix(root).partition(".")[2]: value
            for key, value in load_file(folder / "adapter_model.safetensors").items()
            if ".lora_" in key
        }
        layers = sorted({key.partition(".lora_")[0] for key in weights})
        lora = LoraConfig(r=saved.r, lora_alpha=saved.lora_alpha, target_modules=layers, inference_mode=True)
        if hasattr(self._model, "peft_config"):
            self._model.add_adapter(name, lora)
        else:
            self._model = get_peft_model(self._model, lora, adapter_name=name).eval()
        weights = {root + key: value for key, value in weights.items()}
        loaded = set_peft_model_state_dict(self._model, weights, adapter_name=name)
        wrong = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if f".{name}." in key)]
        if wrong:
            raise ValueError(f"{folder}: its LoRA and the model {settings()['base']} differ: {wrong[0]}")

    def scores(self, ids: list[int]) -> list[float]:
        """Read at the last token, by each member."""
        import torch

        found = []
        with self._lock, torch.no_grad():  # callers are threads, and an adapter is chosen for all of them
            for name, weight in self._heads:
                if self._adapted:
                    self._model.set_adapter(name)
                tokens = torch.tensor([ids], device=self._model.device)
                states = self._model(input_ids=tokens, use_cache=False).last_hidden_state
                found.append(float(states[0, -1].float() @ weight.to(states.device).float()))
        return found


def head(folder: Path) -> Any:
    """The head of a member, shape (hidden,)."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dict
                if key.endswith("score.weight"):
                    return opened.get_tensor(key)[0]
    raise ValueError(f"{folder}: expected a head, score.weight, in its *.safetensors; found none")


def encode(text: str, as_text: bool = False) -> list[int]:
    """The token ids of an answer's text; with `as_text` a special token that it spells is read as those characters."""
    plain = {"split_special_tokens": True} if as_text else {}
    with TOKENIZING:  # the setting is the tokenizer's, and callers are threads
        return [int(token) for token in tokenizer().encode(text, add_special_tokens=False, **plain)]


@cache
def settings() -> dict[str, Any]:
    """What reward_function.json says."""
    found: dict[str, Any] = json.loads((BESIDE / "reward_function.json").read_text(encoding="utf-8"))
    return found


@cache
def tokenizer() -> Any:
    """The policy's tokenizer, which is the reward model's too."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BESIDE / "tokenizer", trust_remote_code=False)


LOADED: list[Members] = []


def members() -> Members:
    """The reward model, loaded once in a process."""
    with LOADING:
        if not LOADED:
            LOADED.append(Members(settings()))
        return LOADED[0]


class Handler(BaseHTTPRequestHandler):
    """Answers the token ids of a conversation with its scores."""

    def do_POST(self) -> None:
        """Read a JSON list of token ids, and write one of scores."""
        ids = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(members().scores(ids)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(address: str) -> ThreadingHTTPServer:
    """A server at HOST:PORT with the reward model in memory, which is yet to be started."""
    members()
    host, _, port = address.rpartition(":")
    return ThreadingHTTPServer((host, int(port)), Handler)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].rpartition(":")[2].isdecimal():
        sys.exit("usage: python reward_function.py HOST:PORT")
    serve(sys.argv[1]).serve_forever()
