"""Log-probabilities and rewards of existing answers, in a process: `python -m cai.training.scoring SPEC.json`.

An answer is tokenized by its chat template, also where a sampler chose other tokens for the same text, which is rare.
One model is in memory at a time.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cai.config.errors import RequestRefused
from cai.config.yaml_files import Section
from cai.data.jsonl import read_rows, write_rows
from cai.data.manifest import read_json
from cai.data.records import Answer, Messages, Preference, Scored
from cai.inference.chat_template import ChatSettings, load_tokenizer
from cai.inference.models import loading_options
from cai.training.distributed import device
from cai.training.reward_folder import is_trained_here
from cai.training.stage import Report
from cai.training.tokens import end_of_turn, rendering_fault, split_turn, vocabulary_fingerprint
from cai.training.worker import serve

BATCH = 4  # answers whose logits are in memory at once


class Writer(Section):
    """A policy and where it is."""

    name: str
    folder: Path


class ScoringSpec(Section):
    """What to score: the answers in a file to one set of prompts, and the first pairs of a file of preferences.

    Without `policies`, no log-probabilities; without `reward`, no rewards.
    """

    answers: Path
    prompts: str  # the set of prompts whose answers are scored
    reference: Path
    reference_chat: ChatSettings | None = None  # the chat template's settings that it is asked with
    policies: list[Writer]
    temperature: float  # that the answers were sampled at: log-probabilities are those of the distribution sampled from
    reward: Path | None
    pairs: Path | None
    pairs_limit: int
    out: Path
    cache_key: str = ""  # under which `out` is reused; scoring itself does not read it


class Text(NamedTuple):
    """A written answer: whose, of what, to which prompt or pair."""

    policy: str
    of: Literal["answers", "pairs"]
    prompt_id: str
    messages: Messages
    text: str
    truncated: bool


def score(spec: ScoringSpec, report: Report) -> None:
    """Write a Scored row for every answer, and for both answers of every pair."""
    answers = [a for a in read_rows(spec.answers, Answer) if a.prompts == spec.prompts]
    pairs = read_rows(spec.pairs, Preference)[: spec.pairs_limit] if spec.pairs is not None else []
    texts = [Text(a.policy, "answers", a.prompt_id, a.messages, a.text, a.truncated) for a in answers]
    for number, pair in enumerate(pairs):
        texts.append(Text("chosen", "pairs", str(number), pair.messages, pair.chosen, False))
        texts.append(Text("rejected", "pairs", str(number), pair.messages, pair.rejected, False))
    scored: list[dict[str, Any]] = [{"tokens": 0} for _ in texts]
    steps = len(spec.policies) + 2

    def add_log_probabilities(folder: Path, field: str, chosen: Sequence[int]) -> None:
        chat = spec.reference_chat if folder == spec.reference else None
        likelihoods = log_probabilities(folder, [texts[i] for i in chosen], spec.temperature, chat)
        for i, (tokens, nats, reason) in zip(chosen, likelihoods, strict=True):
            finite = nats is not None and math.isfinite(nats)
            odd = "" if finite or reason else f"its log-probability is {nats}"
            scored[i] |= {"tokens": tokens, field: nats if finite else None, "reason": reason or odd}

    comparable = []
    for step, policy in enumerate(spec.policies, start=1):
        own = [i for i, text in enumerate(texts) if text.of == "answers" and text.policy == policy.name]
        if same_tokens(policy.folder, spec.reference, spec.reference_chat):
            add_log_probabilities(policy.folder, "logp", own)
            comparable += own
        else:
            for i in own:
                scored[i]["reason"] = "the policy and the reference read different tokens"
        report({"step": step, "of": steps, "note": policy.name})
    if comparable:
        add_log_probabilities(spec.reference, "reference_logp", comparable)
    report({"step": steps - 1, "of": steps, "note": "the reference"})
    if spec.reward is not None:
        for i, (tokens, rewards, reason) in enumerate(rewards_of(spec.reward, texts)):
            finite = all(map(math.isfinite, rewards))
            scored[i] |= {"tokens": tokens, "rewards": rewards if finite else []}
            if reason or not finite:
                scored[i]["reason"] = reason or f"its rewards are {', '.join(map(str, rewards))}"
        report({"step": steps, "of": steps, "note": "the reward model"})
    write_rows(
        spec.out,
        (
            Scored(policy=t.policy, of=t.of, prompt_id=t.prompt_id, **more)
            for t, more in zip(texts, scored, strict=True)
        ),
    )


class Likelihood(NamedTuple):
    """An answer's length in tokens and the sum of their log-probabilities, or the reason why there is none."""

    tokens: int
    nats: float | None
    reason: str


def log_probabilities(
    model: Path, texts: Sequence[Text], temperature: float, chat: ChatSettings | None = None
) -> list[Likelihood]:
    """The likelihood of each text under a model at a temperature above 0, in the order of `texts`."""
    import torch
    from transformers import AutoModelForCausalLM

    from cai.training.ppo.actor import chosen_logps, response_logits
    from cai.training.ppo.sampling import padded

    tokenizer, where = load_tokenizer(model, chat), device()
    fault = rendering_fault(tokenizer)
    likelihoods = [Likelihood(0, None, "")] * len(texts)
    split: dict[int, tuple[list[int], list[int]]] = {}
    for index, text in enumerate(texts):
        if fault:
            likelihoods[index] = Likelihood(0, None, fault)
            continue
        try:
            before, [answer] = split_turn(tokenizer, text.messages, text.text)
        except RequestRefused as refusal:
            likelihoods[index] = Likelihood(0, None, str(refusal))
            continue
        if text.truncated:
            answer = answer[:-1]  # a truncated answer has no end token
        if not answer:
            likelihoods[index] = Likelihood(0, None, "the answer is empty")
        else:
            split[index] = (before, answer)
    options = loading_options(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **options).to(where).eval()
    order = sorted(split, key=lambda i: sum(map(len, split[i])))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        batch = padded([split[i] for i in part], where)
        with torch.no_grad():
            logits, _ = response_logits(network, batch, temperature)
            sums = (chosen_logps(logits, batch.responses) * batch.mask).sum(dim=1).tolist()
        for i, total in zip(part, sums, strict=True):
            likelihoods[i] = Likelihood(len(split[i][1]), total, "")
    return likelihoods


class Rewards(NamedTuple):
    """An answer's length in tokens and its reward by each member, or the reason why there is none."""

    tokens: int
    by_member: list[float]
    reason: str


def rewards_of(folder: Path, texts: Sequence[Text]) -> list[Rewards]:
    """The rewards of each answer, read as in the reward model's training; or by an external reward model."""
    return _rewards_of_trained(folder, texts) if is_trained_here(folder) else _rewards_of_external(folder, texts)


def _rewards_of_trained(folder: Path, texts: Sequence[Text]) -> list[Rewards]:
    from cai.training.reward_model import RewardModel

    tokenizer = load_tokenizer(folder)
    end_of_turn(tokenizer)  # where the score is read
    rewards = [Rewards(0, [], "")] * len(texts)
    turns: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        try:
            prompt, [answer] = split_turn(tokenizer, text.messages, text.text)
            turns[index], rewards[index] = prompt + answer, Rewards(len(answer), [], "")
        except RequestRefused as refusal:
            rewards[index] = Rewards(0, [], str(refusal))
    scores = RewardModel(folder, device=device()).scores(list(turns.values())).tolist()
    for index, row in zip(turns, scores, strict=True):
        rewards[index] = rewards[index]._replace(by_member=row)
    return rewards


def _rewards_of_external(folder: Path, texts: Sequence[Text]) -> list[Rewards]:
    from cai.training.reward_model import ExternalRewardModel

    model = ExternalRewardModel(folder, device())
    rewards = [Rewards(0, [], "")] * len(texts)
    whole: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        try:
            ids = model.tokenizer.ids(text.messages, text.text)
            model.check_length(ids)
            whole[index], rewards[index] = ids, Rewards(model.tokenizer.length(text.text), [], "")
        except RequestRefused as refusal:
            rewards[index] = Rewards(0, [], str(refusal))
    for index, row in zip(whole, model.scores(list(whole.values())).tolist(), strict=True):
        rewards[index] = rewards[index]._replace(by_member=row)
    return rewards


def same_tokens(policy: Path, reference: Path, chat: ChatSettings | None = None) -> bool:
    """Whether two models have the same vocabulary, so that their probabilities can be compared."""
    return vocabulary_fingerprint(load_tokenizer(policy)) == vocabulary_fingerprint(load_tokenizer(reference, chat))


def main() -> int:
    """Score what SPEC.json asks for; returns the exit status."""
    path = Path(sys.argv[1])
    spec = ScoringSpec.model_validate(read_json(path))
    return serve(lambda report, _: score(spec, report), path.parent)


if __name__ == "__main__":
    sys.exit(main())
