"""What tests of the preference stages share: the same preferences in several forms of label, and what a policy prefers."""

from pathlib import Path
from typing import Any

from cai.data.jsonl import write_rows
from cai.data.records import Preference
from tests.conftest import prompt

BETTER, WORSE = "yes yes", "no, not"


def pair(i: int, chosen: str, rejected: str, p: float = 1.0, weight: float = 1.0, text: str = "") -> Preference:
    messages = prompt(f"p{i}", text or f"question {i}").messages
    return Preference(
        prompt_id=f"p{i}", messages=messages, chosen=chosen, rejected=rejected, p=p, weight=weight, source="judge"
    )


def write_pairs(path: Path) -> Path:
    """Eight pairs that prefer BETTER, half of them by p < 0.5; then p8 undecided and p9 too long for 100 tokens."""
    right = [pair(i, BETTER, WORSE, p=0.6) for i in range(4)]
    swapped = [pair(i, WORSE, BETTER, p=0.4) for i in range(4, 8)]
    write_rows(
        path, [*right, *swapped, pair(8, WORSE, BETTER, p=0.5), pair(9, WORSE, BETTER, p=0.4, text="long " * 60)]
    )
    return path


def of_two_sources(path: Path) -> Path:
    """Four pairs of people, who prefer BETTER, and four of a judge that prefers WORSE."""
    human = [pair(i, BETTER, WORSE).model_copy(update={"source": "human"}) for i in range(4)]
    write_rows(path, [*human, *(pair(i, WORSE, BETTER) for i in range(4))])
    return path


def ending(tokenizer: Any) -> Any:
    """The tokenizer with a template that writes nothing behind an answer's end, where ours is cut."""
    own = tokenizer.chat_template
    last = "<|end|>{{ '' if loop.last and m.role == 'assistant' else '\n' }}"
    tokenizer.chat_template = own.replace("<|end|>\n", last)
    assert tokenizer.chat_template != own
    return tokenizer


def preferred_by(policy: Path, text: str = "question 20") -> float:
    """How much likelier the policy finds BETTER than WORSE as the answer to a prompt, in nats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    question = prompt("p", text).messages
    start = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]

    def log_probability(answer: str) -> Any:
        ids = torch.tensor([start + tokenizer(answer)["input_ids"]])
        with torch.no_grad():
            tokens = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        return tokens.gather(-1, ids[0, 1:, None])[len(start) - 1 :].sum()

    return float(log_probability(BETTER) - log_probability(WORSE))
