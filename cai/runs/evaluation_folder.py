"""The folder of an evaluation: its manifest, and when a finished one stays, is added to, or is overwritten."""

import json
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data.manifest import Claim, differences, read_manifest, versions
from cai.evaluation.evaluation_plan import OFF, OVERALL, EvaluateConfig, EvaluationPlan
from cai.evaluation.policy_report import REPORT
from cai.evaluation.probes import PROBE_SETS, Probes
from cai.inference.models import folder_fingerprint, model_fingerprint
from cai.inference.scheduler import deciding_settings

EVAL = "cai eval"  # the command in manifests of evaluations, also of a run's own
OWN_PROMPTS = "held out"  # as `prompts_from`: those of the run
ROLES = ("reference_engine", "judge_engine")  # in a manifest, where they differ from the engine of the policies


def evaluation_claim(plan: EvaluationPlan, out: Path) -> Claim:
    """The folder of an evaluation with its manifest; evaluation.json finishes it."""
    probes = plan.probes._asdict() if plan.probes is not None else dict.fromkeys(Probes._fields)
    engines = (plan.reference_engine, plan.judge_engine)
    roles = {name: deciding_settings(engine) for name, engine in zip(ROLES, engines, strict=True)}
    manifest = {
        "command": EVAL,
        "policies": [{"name": p.name, "model": folder_fingerprint(p.folder)} for p in plan.policies],
        "prompts": fingerprint([prompt.model_dump() for prompt in plan.prompts]),
        "axes": {
            name: {"name": axis.name, "principles": {p.id: p.fingerprint for p in axis.principles}}
            for name, axis in plan.axes.items()
        },
        "templates": plan.templates.fingerprint,
        "judge": model_fingerprint(plan.judge) if plan.judge is not None else None,
        **{name: settings for name, settings in roles.items() if settings != deciding_settings(plan.engine)},
        "settings": {
            "max_tokens": plan.settings.max_tokens,
            "temperature": plan.settings.temperature,
            **(plan.settings.sampling.model_dump(exclude_defaults=True) if plan.settings.sampling else {}),
            **deciding_settings(plan.engine),
        },
        "probes": {name: part and fingerprint(part.model_dump()) for name, part in probes.items()},
        "limit": plan.limit,
        "seed": plan.seed,
        "where": {"judge": str(plan.judge) if plan.judge is not None else OFF, "prompts": plan.prompts_from},
        "versions": versions(),
    }
    return Claim(out, manifest, REPORT, inputs=[policy.folder for policy in plan.policies])


def refuse_other_options(claim: Claim) -> None:
    """Raises: CaiError, in the words of the options, for a finished evaluation that this one would overwrite.

    Options that would only add to it are not named: without the others they would keep it.
    """
    finished = read_manifest(claim.folder)
    if finished is None or finished["command"] != EVAL or not (claim.is_finished() and claim.changes()):
        return
    changes = option_changes(finished, claim.manifest)  # [] of another version
    added = [option for option, adds in _additions(claim.manifest, finished).items() if adds] if changes else []
    lines = "\n  ".join([line for line in changes if line.partition(":")[0] not in added] or claim.changes())
    raise CaiError(
        f"{claim.folder}: holds a finished evaluation with other options:\n  {lines}\n"
        "Keep it and write this one to another folder (--out FOLDER). To overwrite it, --replace: answers in the cache "
        "are reused."
    )


def option_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The options that differ between two manifests of evaluations, a line each: `--limit: 2 → 3`.

    Returns: [] where one is of another version of cai.
    """
    try:
        old, new = _by_option(before), _by_option(after)
        changed = [option for option in old if old[option][1] != new[option][1]]
        settings = differences(before["settings"], after["settings"])
    except (LookupError, TypeError, AttributeError, ValueError):
        return []
    if "--limit" in changed and old["--prompts"][0] == new["--prompts"][0]:
        changed = [option for option in changed if option != "--prompts"]  # which follow from it
    lines = [_change(option, old[option][0], new[option][0]) for option in changed]
    lines += [f"--set {'' if _of_evaluation(line) else 'engine.'}{line}" for line in settings]
    return lines + [line for role in ROLES for line in differences(before.get(role), after.get(role), role)]


def _by_option(manifest: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """What each option of `cai eval` but `--set` came to: as a text, which may be empty, and by content."""
    reference, policy, *others = manifest["policies"]
    axes, where = dict(manifest["axes"]), manifest["where"]
    overall = axes.pop(OVERALL, None)
    limit, probes = manifest["limit"], manifest["probes"]
    return {
        "--reference": (reference["name"], reference["model"]),
        "policy": (policy["name"], policy["model"]),
        "--against": (", ".join(other["name"] for other in others) or "none", others),
        "--limit": ("none" if limit is None else str(limit), limit),
        "--prompts": (where.get("prompts", ""), manifest["prompts"]),
        "--constitution": (overall["name"] if overall else "none", overall),
        "--set axes": (json.dumps(bool(axes)), axes),
        "--judge": (where["judge"], manifest["judge"]),
        "--probes": (", ".join(name for name in PROBE_SETS if probes[name]) or "none", probes),
        "templates of the run": ("", manifest["templates"]),
        "seed of the run": (str(manifest["seed"]), manifest["seed"]),
    }


def _change(option: str, old: str, new: str) -> str:
    if old != new:
        return f"{option}: {old or 'others'} → {new}"
    return f"{option}: {f'{old}, ' if old else ''}with other content"


def _of_evaluation(change: str) -> bool:
    """Whether a line of `differences` is of a setting of `evaluate:`, rather than of `engine:`."""
    return change.partition(":")[0].partition("[")[0] in EvaluateConfig.model_fields


def adds_to(manifest: dict[str, Any], finished: dict[str, Any] | None) -> bool:
    """Whether an evaluation of this manifest has all rows of a finished one: the same policies, prompts and judge.

    It may have more policies, axes and sets of probes, and a judge where that has none.
    """
    if finished is None or finished["command"] != manifest["command"]:
        return False
    try:
        same = ("templates", "settings", "seed")
        return all(manifest[part] == finished[part] for part in same) and all(_additions(manifest, finished).values())
    except (LookupError, TypeError, AttributeError):  # of another version
        return False


def _additions(manifest: dict[str, Any], finished: dict[str, Any]) -> dict[str, bool]:
    """The options by which an evaluation may add to a finished one, each with whether it has all of that one's."""
    before, after = dict(finished["axes"]), dict(manifest["axes"])
    probes = {name: content for name, content in finished["probes"].items() if content is not None}
    return {
        "--against": manifest["policies"][: len(finished["policies"])] == finished["policies"],
        "--constitution": before.pop(OVERALL, None) in (None, after.pop(OVERALL, None)),
        "--set axes": before.items() <= after.items(),
        "--judge": finished["judge"] in (None, manifest["judge"]),
        "--probes": probes.items() <= manifest["probes"].items(),
        "--limit": manifest["prompts"] == finished["prompts"]
        and (not probes or manifest["limit"] == finished["limit"]),
    }


def kept_evaluation(claim: Claim) -> list[str] | None:
    """What a finished evaluation of a run's policy has beside the run's own; None where the run writes its own.

    A run leaves one in its folder alone that is of the same policy, by content, and has more than the run's own ([])
    or other settings (a line each), since somebody asked for it.
    """
    finished = read_manifest(claim.folder)
    if finished is None or not claim.is_finished():
        return None
    models = [policy["model"] for policy in finished.get("policies", [])]
    changes = claim.changes()
    if claim.manifest["policies"][1]["model"] not in models or not changes:
        return None
    if adds_to(claim.manifest, finished):
        return None
    return [] if adds_to(finished, claim.manifest) else option_changes(finished, claim.manifest) or changes
