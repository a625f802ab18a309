"""`make audit` says what it did not audit."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "requirements/audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "version": "1", **more}


@pytest.mark.parametrize(
    ("dependencies", "status", "printed"),
    [
        ([entry("a", vulns=[])], 0, "1 packages audited, 0 vulnerable"),
        ([entry("a", vulns=[{"id": "CVE-1", "fix_versions": ["2"]}])], 1, "a 1: CVE-1 (fixed in 2)"),
        ([entry("a", vulns=[]), entry("b", skip_reason="not found")], 0, "not audited: b"),
        (
            [entry("b", skip_reason="not found")],
            3,
            "SKIPPED, nothing was audited: the service knows none of the 1 packages",
        ),
        (None, 3, "SKIPPED, nothing was audited: no network"),
    ],
)
def test_an_audit_without_a_service_is_skipped_aloud(
    audit: ModuleType,
    dependencies: object,
    status: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    result = subprocess.CompletedProcess([], 0, output, "warning\nno network\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: result)
    assert audit.audit_vulnerabilities(Path("r.txt")) == status
    assert printed in capsys.readouterr().out


def test_a_licence_to_look_at_is_listed(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    licences = {"a": "MIT", "b": "GPL-3.0-only", "c": "LGPL-2.1-only", "d": "UNKNOWN", "setuptools": "UNKNOWN", "e": ""}
    monkeypatch.setattr(audit, "licence", licences.__getitem__)
    assert audit.audit_licences(list(licences)) == 2
    assert "5 of 6 packages are installed here and were read, 2 to look at" in (out := capsys.readouterr().out)
    assert "b: GPL-3.0-only" in out and "d: UNKNOWN" in out
