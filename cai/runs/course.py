"""What a policy said on its way through PPO (samples.jsonl), for an eval judge to follow a training."""

from collections.abc import Iterable
from pathlib import Path

from cai.config.errors import CaiError
from cai.data.jsonl import read_objects, read_rows
from cai.data.manifest import read_json
from cai.data.records import Prompt, Sampled, Skipped
from cai.runs.find import Policy

STAGE = "course of training"


def read_samples(contender: Policy) -> tuple[list[Sampled], list[Skipped]]:
    """The samples of the PPO stage that made a policy, with their prompts, and those that none could be found for.

    A sample names its prompt as the policy read it, in its chat template; so the prompts of the training are written
    out in that form and looked up. Raises: CaiError for a file that is not one of samples.
    """
    if contender.ppo is None:
        return [], []
    from transformers import AutoTokenizer

    from cai.training.tokens import prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(contender.folder)
    known = {tokenizer.decode(prompt_ids(tokenizer, p.messages)): p for p in training_prompts(contender)}
    ends = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    samples, skipped = [], []
    path = contender.ppo / "samples.jsonl"
    for number, value in read_objects(path):
        try:
            prompt = known.get(value["prompt"])
            step, text = int(value["step"]), _without_end(value["response"], ends)
            score, kl = float(value["score"]), float(value["kl"])
        except (KeyError, TypeError, ValueError) as error:
            raise CaiError(f"{path}:{number}: not a sample of PPO: {error}") from None
        if prompt is None:
            reason = "its prompt is not among those of the training that are known"
            skipped.append(Skipped(prompt_id=f"update {step}", stage=STAGE, reason=reason))
        else:
            samples.append(
                Sampled(step=step, prompt_id=prompt.id, messages=prompt.messages, text=text, score=score, kl=kl)
            )
    return samples, skipped


def training_prompts(contender: Policy) -> list[Prompt]:
    """The prompts that PPO drew from; none where their file is gone."""
    if contender.run is not None:
        held_out = set(contender.run.manifest()["held_out"])
        return [prompt for prompt in contender.run.prompts() if prompt.id not in held_out]
    assert contender.ppo is not None
    data = Path(read_json(contender.ppo / "stage.json").get("data", ""))
    return read_rows(data, Prompt) if data.is_file() else []


def _without_end(text: str, ends: Iterable[str]) -> str:
    """A sample without the special tokens that ended it."""
    while end := next((end for end in ends if text.endswith(end)), ""):
        text = text.removesuffix(end).rstrip("\n")
    return text.strip()
