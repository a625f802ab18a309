"""A reward model on human and AI labels (Ouyang et al. 2022, arXiv:2203.02155 §3.5): trl's RewardTrainer, labels soft.

Simplified against the paper: the trunk has the policy's own size, and starts from the policy. Imports trl: import this
module only where a stage trains.

    cai train reward --data pairs.jsonl --model smollm2-135m
"""

import itertools
import json
import random
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import RewardTrainer

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed, fingerprint, uniform
from cai.data.jsonl import write_text
from cai.data.records import Preference
from cai.inference.models import folder_fingerprint
from cai.stats.agreement import calibration_error, reliability
from cai.stats.intervals import share
from cai.training import distributed, trl_stage
from cai.training.checks import check_rows
from cai.training.reward_folder import link_base
from cai.training.reward_model import RewardModel, register_classifier, right_padded
from cai.training.settings import RewardConfig, Truncated
from cai.training.stage import Report, StageSpec
from cai.training.tokens import (
    Unfit,
    end_of_turn,
    keep_fitting,
    opened,
    padding,
    row_turn,
    skip_truncated,
    stage_tokenizer,
    vocabulary_fingerprint,
)

LEAST_HELD_OUT = 2  # prompts, of whose pairs metrics are computed
MAX_RESPONSES = 9  # in one batch element; InstructGPT §3.5 ranks 4 to 9


def soft_preference_loss(delta: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of a Bradley–Terry model against soft labels: mean of w·(−p·log σ(Δ) − (1−p)·log σ(−Δ)).

    Args: delta of shape (pairs,), reward of the first response minus that of the second; p of shape (pairs,),
    P(first better) in [0, 1]; weight of shape (pairs,), each pair's share, 1 / pairs for a plain mean.
    Returns: a scalar in nats. With p = 1 it is InstructGPT's eq. 1 (arXiv:2203.02155).
    """
    return -(weight * (p * logsigmoid(delta) + (1 - p) * logsigmoid(-delta))).sum()


def length_dependence(rewards: Tensor, lengths: Tensor) -> Tensor:
    """R² of the regression of reward on length within a batch, in [0, 1]: their squared Pearson correlation.

    ODIN (Chen et al. 2024, arXiv:2402.07319 §3.2) penalises the correlation's absolute value; the square is smooth.
    """
    r, n = rewards - rewards.mean(), lengths - lengths.mean()
    return (r * n).sum() ** 2 / (r.square().sum() * n.square().sum()).clamp_min(1e-8)


class SoftRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """Trains on prompts, each with its responses and the labelled pairs among them, in one batch element.

    All pairs of a prompt stand in one element, as in InstructGPT §3.5, so that a response is read once however many
    pairs it is part of; an element weighs the mean of its pairs' weights. With one pair of p = 1 an element, the loss
    is trl's to the bit. `length_control` is the weight of `length_dependence` in the loss.
    """

    def __init__(self, *args: Any, length_control: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.length_control = length_control
        self.model.config.get_text_config().pad_token_id = self.data_collator.pad  # where the score is read

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # token ids already

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["responses", "answer_tokens", "pairs", "p", "weight"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's loss; see the functions above for its parts."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        rewards = outputs.logits.squeeze(-1)
        first, second = rewards[inputs["pairs"][:, 0]], rewards[inputs["pairs"][:, 1]]
        loss = soft_preference_loss(first - second, inputs["p"], inputs["weight"])
        if self.args.center_rewards_coefficient:
            loss = loss + self.args.center_rewards_coefficient * (inputs["weight"] * (first + second) ** 2).sum()
        if self.length_control:
            loss = loss + self.length_control * length_dependence(rewards, inputs["answer_tokens"])
        with torch.no_grad():
            log = self._metrics["train" if self.model.training else "eval"]
            decided = inputs["p"] != 0.5
            right = ((first > second) == (inputs["p"] > 0.5))[decided].float()
            if len(right):
                log["accuracy"].append(right.mean().item())
            log["mean_reward"].append(rewards.mean().item())
            log["margin"].append((first - second).mean().item())
        return (loss, outputs) if return_outputs else loss


class RankingCollator:
    """Pads the responses of all elements into one batch; `pairs` index its rows."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tensors: input_ids and attention_mask (responses, tokens), pairs (pairs, 2), p and weight (pairs,)."""
        sequences = [ids for example in examples for ids in example["responses"]]
        input_ids, attention_mask = right_padded(sequences, self.pad)
        pairs, weights, start = [], [], 0
        for example in examples:
            pairs += [[start + i, start + j] for i, j in example["pairs"]]
            weights += [w / (len(example["pairs"]) * len(examples)) for w in example["weight"]]
            start += len(example["responses"])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "answer_tokens": torch.tensor([n for example in examples for n in example["answer_tokens"]]).float(),
            "pairs": torch.tensor(pairs),
            "p": torch.tensor([p for example in examples for p in example["p"]]),
            "weight": torch.tensor(weights),
        }


class Pair(NamedTuple):
    """A preference as token ids that end with the end of the turn, and the length of each answer in tokens."""

    row: Preference
    chosen: list[int]
    rejected: list[int]
    answer_tokens: tuple[int, int]


def train(spec: StageSpec[RewardConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/` (a reward model), report.json and metrics.jsonl."""
    settings, folder, tokenizer = spec.settings, spec.folder, stage_tokenizer(spec.model, spec.chat)
    rows, left_out = trl_stage.read_pairs(spec)
    pairs, unfit = pairs_that_fit(tokenizer, rows, settings.max_length, settings.truncated)
    held_out, training = _split(pairs, settings.holdout)
    report(
        {
            "examples": len(training),
            **unfit.event(),
            "held_out": len(held_out),
            **left_out,
            **opened(p.row for p in pairs),
        }
    )
    elements = batch_elements(training)
    check_rows("reward", len(elements))
    for number in range(1, settings.members + 1):
        if not (folder / "members" / f"member-{number}").is_dir():
            _train_member(spec, elements, tokenizer, number, report)
    if distributed.is_first_process():
        _assemble(spec, tokenizer, folder / "model.part")
        if held_out:
            metrics = evaluate_reward_model(folder / "model.part", held_out)
            write_text(folder / "report.json", json.dumps(metrics, indent=1) + "\n")
        (folder / "model.part").rename(folder / "model")
        shutil.rmtree(folder / "members")


def pairs_that_fit(
    tokenizer: Any, rows: Sequence[Preference], max_length: int, truncated: Truncated = "skip"
) -> tuple[list[Pair], Unfit]:
    """All pairs that fit into `max_length` tokens, whole, and the others. Raises: CaiError when none is left."""
    end_of_turn(tokenizer)  # where the score is read

    def tokenize(row: Preference) -> Pair | None:
        prompt, [chosen, rejected] = row_turn(tokenizer, row)
        if len(prompt) + max(len(chosen), len(rejected)) > max_length:
            return None
        return Pair(row, prompt + chosen, prompt + rejected, (len(chosen), len(rejected)))

    finished, skipped = skip_truncated(rows, truncated)
    kept, unfit = keep_fitting(finished, lambda row: row.prompt_id, tokenize)
    unfit = unfit._replace(truncated=skipped)
    if not kept:
        unfit.refuse_all_truncated()
        raise CaiError(f"nothing to train on: {len(rows)} pairs, none within max_length, {max_length} tokens: {unfit}")
    return kept, unfit


def _split(pairs: list[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(held out, training), by prompt: the hash of a prompt's id decides, so that more data moves no prompt across."""
    prompts = sorted({pair.row.prompt_id for pair in pairs}, key=lambda i: uniform("reward held out", i))
    held = set(prompts[: round(share * len(prompts))])
    split = ([p for p in pairs if p.row.prompt_id in held], [p for p in pairs if p.row.prompt_id not in held])
    if not split[1]:
        raise CaiError(f"nothing to train on: the {len(prompts)} prompts are all held out; lower holdout")
    return split


def batch_elements(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The pairs of each prompt as one example over its distinct responses, at most MAX_RESPONSES of them."""
    elements: list[dict[str, Any]] = []
    open_element: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key = pair.row.prompt_id + fingerprint(pair.row.messages)  # an id may stand for two conversations in a file
        element = open_element.get(key)
        new = [ids for ids in (pair.chosen, pair.rejected) if element is None or ids not in element["responses"]]
        if element is None or len(element["responses"]) + len(new) > MAX_RESPONSES:
            element = {"responses": [], "answer_tokens": [], "pairs": [], "p": [], "weight": []}
            open_element[key] = element
            elements.append(element)
        for ids, tokens in zip((pair.chosen, pair.rejected), pair.answer_tokens, strict=True):
            if ids not in element["responses"]:
                element["responses"].append(ids)
                element["answer_tokens"].append(tokens)
        element["pairs"].append([element["responses"].index(ids) for ids in (pair.chosen, pair.rejected)])
        element["p"].append(pair.row.p)
        element["weight"].append(pair.row.weight)
    return elements


def bootstrap(elements: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """As many elements, drawn with replacement."""
    return random.Random(seed).choices(elements, k=len(elements))


def _train_member(
    spec: StageSpec[RewardConfig], elements: list[dict[str, Any]], tokenizer: Any, number: int, report: Report
) -> None:
    """Train one member of the ensemble, from 1, into `members/member-N`; the first has the stage's own seed."""
    import datasets
    import trl

    settings, members = spec.settings, spec.folder / "members"
    seed = spec.seed if number == 1 else derive_seed(spec.seed, "member", number) % 2**31
    if settings.members > 1:
        elements = bootstrap(elements, seed)
    work = members / f"{number}"
    arguments = trl_stage.trl_arguments(settings, spec.model, work, seed)
    lora = trl_stage.lora_config(settings)
    if lora is not None:
        lora.task_type, lora.modules_to_save = "SEQ_CLS", ["score"]
    register_classifier(spec.model)
    trainer = SoftRewardTrainer(
        model=str(spec.model),
        args=trl_stage.trl_config(
            trl.RewardConfig,
            settings,
            arguments | {"center_rewards_coefficient": settings.center_rewards_coefficient or None},
        ),
        data_collator=RankingCollator(padding(tokenizer, end_of_turn(tokenizer))),
        train_dataset=datasets.Dataset.from_list(elements),
        processing_class=tokenizer,
        peft_config=lora,
        length_control=settings.length_control,
    )

    def report_all(event: dict[str, Any]) -> None:
        done = (number - 1) * event["of"]
        report({**event, "step": done + event["step"], "of": settings.members * event["of"]})

    metrics = "metrics.jsonl" if number == 1 else f"metrics-{number}.jsonl"
    trained = trl_stage.train(trainer, settings.report_to, spec.folder / metrics, report_all)
    weights = trl_stage.sharded_weights(trained) if settings.fsdp else None
    if trainer.is_world_process_zero():
        if lora is not None:
            trained.peft_config["default"].base_model_name_or_path = "../base"  # not a path of this machine
        trained.save_pretrained(work / "result", state_dict=weights)
        (work / "result").rename(members / f"member-{number}")
        shutil.rmtree(work)


def _assemble(spec: StageSpec[RewardConfig], tokenizer: Any, target: Path) -> None:
    """Put the trained members, the base and reward.json together in `target`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    members = [f"member-{number}" for number in range(1, spec.settings.members + 1)]
    for name in members:
        shutil.copytree(spec.folder / "members" / name, target / name)
    base = None
    if spec.settings.lora_r is not None:
        link_base(target, spec.model, spec.folder)
        base = folder_fingerprint(spec.model)
    tokenizer.save_pretrained(target)
    about = {"members": members, "base": base, "vocabulary": vocabulary_fingerprint(tokenizer)}
    write_text(target / "reward.json", json.dumps(about, indent=1) + "\n")


def evaluate_reward_model(folder: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Metrics of a reward model on held-out labelled pairs, from the scores that PPO would get.

    Accuracy over pairs with p other than one half, with a bootstrap interval over prompts; calibration of σ(Δ) against
    the labels; Pearson correlation of the reward with the answer's length in tokens; share of pairs whose longer answer
    the labels prefer; and share of pairs on whose winner two members of an ensemble agree (None without an ensemble).
    Of fewer than LEAST_HELD_OUT prompts each of these is None: the pairs of one are right or wrong together, and no
    share.
    """
    if len({pair.row.prompt_id for pair in pairs}) < LEAST_HELD_OUT:
        unknown = dict.fromkeys(("accuracy", "ece", "length_correlation", "longer_preferred", "ensemble_agreement"))
        return {"pairs": len(pairs), "reliability": [], **unknown}

    scores = RewardModel(folder, device=distributed.device()).scores(
        [ids for p in pairs for ids in (p.chosen, p.rejected)]
    )
    rewards = scores.mean(dim=1).tolist()
    deltas = [a - b for a, b in zip(rewards[::2], rewards[1::2], strict=True)]
    labels = [pair.row.p for pair in pairs]
    decided = [i for i, p in enumerate(labels) if p != 0.5]
    by_prompt: dict[str, list[float]] = {}
    for i in decided:
        by_prompt.setdefault(pairs[i].row.prompt_id, []).append(float((deltas[i] > 0) == (labels[i] > 0.5)))
    accuracy = share([*map(statistics.mean, by_prompt.values())]) if len(by_prompt) >= LEAST_HELD_OUT else None
    predicted = torch.sigmoid(torch.tensor(deltas)).tolist()
    lengths = [n for pair in pairs for n in pair.answer_tokens]
    longer = [
        float((n > m) == (pair.row.p > 0.5))
        for pair in pairs
        if (n := pair.answer_tokens[0]) != (m := pair.answer_tokens[1]) and pair.row.p != 0.5
    ]
    winners = scores[::2] > scores[1::2]  # (pairs, members)
    agreements = [
        (winners[:, i] == winners[:, j]).float().mean().item()
        for i, j in itertools.combinations(range(winners.shape[1]), 2)
    ]
    return {
        "pairs": len(pairs),
        "accuracy": accuracy._asdict() if accuracy else None,
        "ece": calibration_error(predicted, labels, [pair.row.prompt_id for pair in pairs])._asdict(),
        "reliability": [b._asdict() for b in reliability(predicted, labels)],
        "length_correlation": _correlation(rewards, lengths),
        "longer_preferred": statistics.mean(longer) if longer else None,
        "ensemble_agreement": statistics.mean(agreements) if agreements else None,
    }


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return statistics.correlation(x, y)
