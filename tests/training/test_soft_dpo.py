from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from cai.training.setting_parts import SMOOTHED, SOFT, LossType
from cai.training.settings import DPOConfig
from cai.training.tokens import assistant_turn, split_turn
from tests.conftest import prompt
from tests.training.policies import ending

pytestmark = pytest.mark.numeric

torch = pytest.importorskip("torch")
BETA, NOISE = 0.3, 0.2
ALIKE = [1.0, 1.0, 1.0]
MIXED = [0.7, 0.01, 1.0]


@pytest.fixture(scope="module")
def trainers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """For a loss: (ours, trl's) on the same pairs and weights; trl's tokenizes them itself."""
    import datasets
    import trl
    from transformers import AutoTokenizer

    from cai.training.dpo import SoftDPOTrainer, SoftPreferenceCollator

    texts = [(prompt("p", f"question {i}").messages, "yes " * (i + 1), "never " * (3 - i)) for i in range(3)]
    labels = [{"p": 1.0, "weight": 0.5}, {"p": 0.7, "weight": 1.5}, {"p": 0.25, "weight": 1.0}]
    folder = tmp_path_factory.mktemp("trainers")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = trl.DPOConfig(
        str(folder), bf16=False, use_cpu=True, precompute_ref_log_probs=True, beta=BETA, report_to=[], max_length=256
    )
    ours = SoftDPOTrainer(
        model=str(tiny_model),
        args=config,
        data_collator=SoftPreferenceCollator(tokenizer.pad_token_id, 256),
        train_dataset=datasets.Dataset.from_list(
            [
                {"prompt_ids": turn.prompt, "chosen_ids": turn.answers[0], "rejected_ids": turn.answers[1], **label}
                for label, turn in zip(labels, (split_turn(tokenizer, *row) for row in texts), strict=True)
            ]
        ),
        processing_class=tokenizer,
    )
    conversations = [
        {"prompt": messages, "chosen": assistant_turn(chosen), "rejected": assistant_turn(rejected)}
        for messages, chosen, rejected in texts
    ]
    trls = trl.DPOTrainer(
        model=str(tiny_model),
        args=config,
        train_dataset=datasets.Dataset.from_list(conversations),
        processing_class=ending(tokenizer),
    )

    def with_loss(loss: str) -> tuple[Any, Any]:
        for trainer in (ours, trls):
            trainer.loss_types = [loss]
            trainer.label_smoothing = NOISE if loss in SMOOTHED else 0.0
            trainer.model.zero_grad()
        return ours, trls

    return with_loss


def batch(trainer: Any, p: list[float] | None = None, weight: list[float] | None = None) -> dict[str, Any]:
    """The three pairs, with reference log-probabilities moved so that the margins are not zero."""
    made = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    made["ref_chosen_logps"] = made["ref_chosen_logps"] + torch.tensor([2.0, -1.0, 0.5])
    if p is not None:
        made["p"], made["weight"] = torch.tensor(p), torch.tensor(weight or ALIKE)
    return dict(made)


def log_ratios(trainer: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Naive float64 log-ratios of the chosen and the rejected answers, from the plain logits, and their lengths."""
    with torch.no_grad():
        logits = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.double()
    tokens = torch.log_softmax(logits[:, :-1], -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    chosen, rejected = (tokens * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)
    lengths = inputs["completion_mask"].sum(1).double().chunk(2)
    return chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"], *lengths


def naive_loss(loss: str, chosen: Any, rejected: Any, chosen_length: Any, rejected_length: Any) -> Any:
    """One pair's loss as its paper writes it."""
    log_sigmoid = torch.nn.functional.logsigmoid
    x = BETA * (chosen - rejected)
    match loss:
        case "sigmoid":
            return -log_sigmoid(x)
        case "robust":
            return (-(1 - NOISE) * log_sigmoid(x) + NOISE * log_sigmoid(-x)) / (1 - 2 * NOISE)
        case _:
            return (chosen / chosen_length - rejected / rejected_length - 1 / (2 * BETA)) ** 2


def largest_gradient(trainer: Any) -> float:
    return max(p.grad.abs().max().item() for p in trainer.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("loss", SOFT)
def test_with_p_1_and_equal_weights_loss_and_gradient_are_trls(trainers: Any, loss: str) -> None:
    ours, trls = trainers(loss)
    mine = ours.compute_loss(ours.model, batch(ours, ALIKE))
    theirs = trls.compute_loss(trls.model, batch(trls))
    assert mine.item() == theirs.item()
    mine.backward()
    theirs.backward()
    for a, b in zip(ours.model.parameters(), trls.model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("loss", SOFT)
@pytest.mark.parametrize("p", [[0.0, 0.5, 1.0], MIXED, [0.5, 0.5, 0.5], ALIKE])
@pytest.mark.parametrize("weight", [ALIKE, [0.25, 2.0, 0.75]])
def test_the_loss_is_the_weighted_expectation_over_the_label(
    trainers: Any, loss: str, p: list[float], weight: list[float]
) -> None:
    ours, _ = trainers(loss)
    chosen, rejected, *lengths = log_ratios(ours, batch(ours))
    right = naive_loss(loss, chosen, rejected, *lengths)
    wrong = naive_loss(loss, rejected, chosen, *reversed(lengths))
    label, w = torch.tensor(p, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
    expected = (w * (label * right + (1 - label) * wrong)).mean()
    assert ours.compute_loss(ours.model, batch(ours, p, weight)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_vanishes_where_the_policy_agrees_with_the_label(trainers: Any) -> None:
    ours, _ = trainers("sigmoid")
    chosen, rejected, *_ = log_ratios(ours, batch(ours))
    agreed = torch.sigmoid(BETA * (chosen - rejected)).tolist()
    ours.compute_loss(ours.model, batch(ours, agreed)).backward()
    agreeing = largest_gradient(ours)
    ours.model.zero_grad()
    ours.compute_loss(ours.model, batch(ours, ALIKE)).backward()
    assert agreeing < 1e-4 * largest_gradient(ours)


def test_labels_and_weights_reach_the_batch_unrounded(trainers: Any) -> None:
    ours, _ = trainers("sigmoid")
    assert batch(ours)["p"].tolist() == pytest.approx([1.0, 0.7, 0.25])
    assert batch(ours)["weight"].tolist() == [0.5, 1.5, 1.0]
    loaded = next(iter(ours.get_train_dataloader()))
    assert loaded["p"].shape == loaded["weight"].shape == (3,)


@pytest.mark.parametrize("loss", get_args(LossType))
def test_every_loss_we_offer_is_one_that_trl_can_learn_from(trainers: Any, loss: str) -> None:
    _, trls = trainers(loss)
    value = trls.compute_loss(trls.model, batch(trls))
    value.backward()
    assert torch.isfinite(value) and 0 < largest_gradient(trls) < float("inf")


def test_label_smoothing_is_refused_where_the_loss_ignores_it() -> None:
    for loss in get_args(LossType):
        if loss in SMOOTHED:
            DPOConfig(stage="dpo", loss_type=loss, label_smoothing=0.1)
        else:
            with pytest.raises(ValidationError, match=f"label_smoothing: the loss {loss} ignores it; only robust, "):
                DPOConfig(stage="dpo", loss_type=loss, label_smoothing=0.1)
            DPOConfig(stage="dpo", loss_type=loss)
    with pytest.raises(ValidationError, match="the loss exo_pair needs it above 0"):
        DPOConfig(stage="dpo", loss_type="exo_pair")
    with pytest.raises(ValidationError, match=r"less than 0\.5"):
        DPOConfig(stage="dpo", loss_type="robust", label_smoothing=0.5)


@pytest.mark.parametrize("loss", get_args(LossType))
def test_the_losses_that_use_label_smoothing_are_those_named(trainers: Any, loss: str) -> None:
    _, trls = trainers(loss)
    values = []
    for trls.label_smoothing in (0.1, 0.3):
        values.append(trls.compute_loss(trls.model, batch(trls)).item())
    assert (values[0] != values[1]) == (loss in SMOOTHED)


def test_soft_labels_are_refused_with_a_loss_that_has_no_place_for_them(tiny_model: Path, tmp_path: Path) -> None:
    import datasets
    import trl
    from transformers import AutoTokenizer

    from cai.training.dpo import SoftDPOTrainer

    turns = {"prompt_ids": [3], "chosen_ids": [4], "rejected_ids": [5]}
    with pytest.raises(ValueError, match="soft labels need one loss_type of sigmoid, ipo, robust"):
        SoftDPOTrainer(
            model=str(tiny_model),
            args=trl.DPOConfig(str(tmp_path), bf16=False, use_cpu=True, loss_type="hinge", report_to=[]),
            train_dataset=datasets.Dataset.from_list([turns]),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )
