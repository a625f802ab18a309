"""What a run was made of: hashes of everything that decided it, and the files themselves."""

from typing import Any

import yaml

from cai.runs.folder import RunFolder


def made_of(lock: dict[str, Any]) -> dict[str, str]:
    """What decided the result: names, and hashes of content; what a lock of another version lacks is left out."""
    config = lock.get("config") or {}
    constitution, referee = lock.get("constitution") or {}, lock.get("referee") or {}
    named = {
        "model": (config.get("model"), lock.get("model")),
        "constitution": (constitution.get("name"), constitution.get("fingerprint")),
        "judge": (None, ", ".join(lock.get("judge_models") or [])),
        "referee": (referee.get("name"), referee.get("fingerprint")),
        "templates": (config.get("templates"), lock.get("templates")),
        "prompts": ((config.get("prompts") or {}).get("source"), lock.get("prompts")),
        "preferences of a file": ((config.get("preferences") or {}).get("source"), lock.get("preferences")),
        **{name: (None, content) for name, content in (lock.get("train_files") or {}).items()},
    }
    made = {key: ", ".join(_told(*parts)) for key, parts in named.items() if any(parts)}
    versions = ", ".join(f"{package} {version}" for package, version in (lock.get("versions") or {}).items())
    return {**made, "seed": str(config.get("seed", "")), "versions": versions}


def _told(name: str | None, content: str | None) -> list[str]:
    return [*([str(name)] if name else []), *([f"content {content}"] if content else [])]


def configuration_files(folder: RunFolder, lock: dict[str, Any]) -> list[tuple[str, str]]:
    """The whole configuration: what was given, and all settings with their defaults."""
    given = [folder.run_yaml, folder.constitution_yaml, folder.referee_yaml, *sorted(folder.templates.glob("*"))]
    texts = [(str(file.relative_to(folder.path)), file.read_text(encoding="utf-8")) for file in given if file.is_file()]
    return [*texts[:1], ("all settings, with defaults", as_yaml(lock.get("config"))), *texts[1:]]


def as_yaml(value: Any) -> str:
    """A JSON value as YAML."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))
