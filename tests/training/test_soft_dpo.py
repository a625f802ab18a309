from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def trainers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(ours, trl's) on the same pairs and weights."""
    import datasets
    import trl
    from transformers import AutoTokenizer

    from cai.training.soft_dpo import SoftDPOTrainer, SoftPreferenceCollator

    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "chosen": [{"role": "assistant", "content": "yes " * (i + 1)}],
            "rejected": [{"role": "assistant", "content": "never " * (3 - i)}],
            "p": p,
        }
        for i, p in enumerate((1.0, 0.7, 0.25))
    ]
    folder = tmp_path_factory.mktemp("trainers")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = trl.DPOConfig(
        str(folder), bf16=False, use_cpu=True, precompute_ref_log_probs=True, beta=0.3, report_to=[], max_length=256
    )
    ours = SoftDPOTrainer(
        model=str(tiny_model),
        args=config,
        data_collator=SoftPreferenceCollator(tokenizer.pad_token_id, 256),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trls = trl.DPOTrainer(
        model=str(tiny_model),
        args=config,
        train_dataset=datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "p"} for row in rows]),
        processing_class=tokenizer,
    )
    return ours, trls


def batch(trainer: Any, p: list[float] | None = None) -> dict[str, Any]:
    """The three pairs, with reference log-probabilities moved so that the margins are not zero."""
    made = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    made["ref_chosen_logps"] = made["ref_chosen_logps"] + torch.tensor([2.0, -1.0, 0.5])
    if p is not None:
        made["p"] = torch.tensor(p)
    return dict(made)


def logps(trainer: Any, inputs: dict[str, Any]) -> Any:
    """Naive float64 log-probabilities of each answer, from the plain logits."""
    with torch.no_grad():
        logits = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.double()
    tokens = torch.log_softmax(logits[:, :-1], -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return (tokens * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)


def test_with_p_1_the_loss_is_trls(trainers: tuple[Any, Any]) -> None:
    ours, trls = trainers
    mine = ours.compute_loss(ours.model, batch(ours, [1.0, 1.0, 1.0]))
    theirs = trls.compute_loss(trls.model, batch(trls))
    assert mine.item() == theirs.item()


@pytest.mark.parametrize("p", [[0.0, 0.5, 1.0], [0.7, 0.01, 0.3], [0.5, 0.5, 0.5]])
def test_the_loss_is_the_expectation_over_the_label(trainers: tuple[Any, Any], p: list[float]) -> None:
    ours, _ = trainers
    inputs = batch(ours, p)
    chosen, rejected = logps(ours, inputs)
    margin = 0.3 * ((chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"]))
    log_sigmoid = torch.nn.functional.logsigmoid
    label = torch.tensor(p, dtype=torch.float64)
    expected = -(label * log_sigmoid(margin) + (1 - label) * log_sigmoid(-margin)).mean()
    assert ours.compute_loss(ours.model, batch(ours, p)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_vanishes_where_the_policy_agrees_with_the_label(trainers: tuple[Any, Any]) -> None:
    ours, _ = trainers
    inputs = batch(ours)
    chosen, rejected = logps(ours, inputs)
    margin = 0.3 * ((chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"]))
    ours.model.zero_grad()
    ours.compute_loss(ours.model, batch(ours, torch.sigmoid(margin).tolist())).backward()
    agreeing = max(p.grad.abs().max().item() for p in ours.model.parameters() if p.grad is not None)
    ours.model.zero_grad()
    ours.compute_loss(ours.model, batch(ours, [1.0, 1.0, 1.0])).backward()
    hard = max(p.grad.abs().max().item() for p in ours.model.parameters() if p.grad is not None)
    assert agreeing < 1e-4 * hard
    ours.model.zero_grad()


def test_labels_reach_the_batch_unrounded(trainers: tuple[Any, Any]) -> None:
    ours, _ = trainers
    assert batch(ours)["p"].tolist() == pytest.approx([1.0, 0.7, 0.25])
    assert next(iter(ours.get_train_dataloader()))["p"].shape == (3,)
