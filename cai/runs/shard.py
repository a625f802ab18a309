"""One share of a run's training prompts, so that several machines make its feedback (docs/scaling.md)."""

import re
from dataclasses import replace
from typing import NamedTuple

from cai.config.errors import CaiError
from cai.config.hashing import uniform
from cai.data.prompts import StoredPrompts
from cai.runs.folder import RunFolder
from cai.runs.plan import Plan, folder_name
from cai.stats.formatting import counted


class Shard(NamedTuple):
    """One of `total` shares of a run's training prompts; `number` counts from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `3/16`. Raises: CaiError for anything else."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.total:
            raise CaiError(f"--shard {text}: expected K/N with K from 1 to N, such as 3/16")
        return shard

    def has(self, prompt_id: str) -> bool:
        """Whether a prompt is in this share, which the hash of its id alone decides."""
        return int(uniform("shard", prompt_id) * self.total) == self.number - 1


def shard_plan(plan: Plan, shard: Shard) -> Plan:
    """The feedback of one shard of a run, in a folder of its own; the whole run then finds it in the cache.

    It neither trains nor evaluates, and leaves to the whole run what is not asked of a model: labels from a file and
    skipped rows. Raises: CaiError for a shard without prompts.
    """
    whole = plan.training
    places = [place for place, prompt in enumerate(whole) if shard.has(prompt.id)]
    training = whole.pick(places) if isinstance(whole, StoredPrompts) else [whole[place] for place in places]
    if not training:
        prompts = counted(len(plan.training), "training prompts")
        raise CaiError(f"--shard {shard}: none of the {prompts} is in this shard; use fewer shards")
    name = f"{plan.config.name or plan.run_file.stem}-shard-{shard.number}-of-{shard.total}"
    changes = {"name": name, "train": [], "iterations": 1, "seeds": 1, "preferences": None}
    overrides = ["train=[]", "iterations=1", *(["seeds=1"] if plan.config.seeds > 1 else []), "preferences=null"]
    prompts_config = plan.config.prompts.model_copy(update={"holdout": 0.0})
    return replace(
        plan,
        overrides=[*plan.overrides, *overrides, "prompts.holdout=0"],
        config=plan.config.model_copy(update={**changes, "prompts": prompts_config}),
        training=training,
        held_out=[],
        prompts_skipped=[],
        preferences=[],
        preferences_skipped=[],
        train=[],
        folder=RunFolder(plan.runs / folder_name(name, f"--shard {shard}: name", "--name NEW")),
        shard=str(shard),
    )
