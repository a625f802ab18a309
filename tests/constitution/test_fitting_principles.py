"""Adversarial prompts meet principles of the shipped `harmless` that fit them, by a mapping made by hand (fitting.yaml)."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from cai.constitution.principles import applying, assign, load_constitution, questions
from tests.conftest import ROOT

FITTING: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("fitting.yaml").read_text(encoding="utf-8"))
HARMLESS = load_constitution(ROOT / "constitutions/harmless.yaml")
DATA = Path(os.environ.get("CAI_TEST_DATA", ROOT.parent / "shared/data")) / "hh-rlhf-harmless-base.jsonl.gz"
LEAST = 0.6  # of the adversarial prompts, in one round
SEEDS = range(20)


def fits(id: str, kinds: list[str]) -> bool:
    fitting = FITTING["principles"][id]["fits"]
    return fitting == "any" or not set(fitting).isdisjoint(kinds)


def answered(kinds: list[str]) -> dict[str, float]:
    """The right answers to the questions: Yes where the principle fits."""
    return {
        p.applies_to.question: float(fits(p.id, kinds))
        for p in HARMLESS.principles
        if p.applies_to is not None and p.applies_to.question is not None
    }


def drawn(prompts: dict[str, list[str]], yes_to_all: bool = False) -> list[tuple[str, bool]]:
    """The principle of each prompt in round 1, over seeds, and whether it fits."""
    draws = []
    for seed in SEEDS:
        for id, kinds in prompts.items():
            answers = dict.fromkeys(questions(HARMLESS), 1.0) if yes_to_all else answered(kinds)
            principle = assign(applying(HARMLESS, [], answers), seed, id, "round 1")[0].id
            draws.append((principle, fits(principle, kinds)))
    return draws


def share_met(prompts: dict[str, list[str]], yes_to_all: bool = False) -> float:
    """The share of prompts whose principle in round 1 fits, over seeds."""
    return fmean(fitting for _, fitting in drawn(prompts, yes_to_all))


def specific_met(prompts: dict[str, list[str]], yes_to_all: bool = False) -> float:
    """The same among the draws of principles that do not fit any prompt by what they ask."""
    draws = drawn(prompts, yes_to_all)
    return fmean(fitting for principle, fitting in draws if FITTING["principles"][principle]["fits"] != "any")


def test_every_principle_and_every_adversarial_prompt_is_mapped() -> None:
    assert list(FITTING["principles"]) == [p.id for p in HARMLESS.principles]
    rows = [json.loads(line) for line in (ROOT / "examples/prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(FITTING["examples"]) == [row["id"] for row in rows if "adversarial" in row["tags"]]
    used = {kind for part in ("examples", "hh-rlhf") for kinds in FITTING[part].values() for kind in kinds}
    assert used == set(FITTING["kinds"])


@pytest.mark.parametrize("prompts", ["examples", "hh-rlhf"])
def test_most_adversarial_prompts_meet_a_fitting_principle_in_one_round(prompts: str) -> None:
    assert share_met(FITTING[prompts]) >= LEAST  # the questions answered rightly
    assert share_met(FITTING[prompts], yes_to_all=True) >= LEAST - 0.05  # as by a model that says Yes to everything


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there; CAI_TEST_DATA names its folder")
def test_the_prompts_of_hh_rlhf_are_those_of_the_lowest_hashes_and_not_chosen_by_hand() -> None:
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        chosen = [json.loads(line)["chosen"] for line in file]
    turns = [text.split("\n\nHuman: ", 1)[1].split("\n\nAssistant:")[0].strip() for text in chosen]
    hashes = {hashlib.blake2b(turn.encode(), digest_size=6).hexdigest() for turn in turns}
    assert set(FITTING["hh-rlhf"]) <= set(sorted(hashes)[:64])


def test_the_docs_say_what_fits_by_construction_and_how_often_the_rest_does() -> None:
    docs = " ".join((ROOT / "docs/constitutions.md").read_text(encoding="utf-8").split())
    always = [p for p in HARMLESS.principles if FITTING["principles"][p.id]["fits"] == "any"]
    general = [p for p in HARMLESS.principles if p.applies_to is None]
    assert len(always) == 5 and all(p in general for p in always)
    weights = [sum(p.weight for p in some) for some in (always, general)]
    assert "they have {:g} of the weight {:g}".format(*weights) in docs
    shares = [100 * specific_met(FITTING[part], yes) for yes in (False, True) for part in ("examples", "hh-rlhf")]
    examples, hh_rlhf, *yes_to_all = (f"{share:.0f} %" for share in shares)
    fits = (
        f"fits its prompt in {examples} of cases on the prompts of `examples/prompts.jsonl` and in {hh_rlhf} on those"
    )
    assert f"{fits} of hh-rlhf; with Yes to all questions, in {yes_to_all[0]} on both" in docs
    assert yes_to_all[0] == yes_to_all[1]
