"""Coverage-guided bytes for the readers of files, with atheris: python -m tests.faults.fuzz_bytes TARGET [OPTION …].

    pip install atheris   # by hand: it is no dependency
    python -m tests.faults.fuzz_bytes constitutions -max_total_time=300
    python -m tests.faults.fuzz_bytes data.jsonl:preferences -max_total_time=300

Options are libFuzzer's. An input that ends in anything but success or a CaiError is written to `crash-…`, and ends it;
put what it shows into tests/faults/test_bad_input.py.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["cai", "yaml"]):
    from cai.config.errors import CaiError
    from tests.faults.inputs import READERS, TARGETS

BYTES = ("constitutions", "constitutions of others", "demonstrations of others", "manifests", "run files", "sweeps")


def reader(target: str, folder: Path) -> Callable[[bytes], object]:
    """What reads bytes: one of BYTES, or `dataSUFFIX:READER`."""
    if target.startswith("data."):
        suffix, _, name = target.removeprefix("data").partition(":")
        path = folder / f"rows{suffix}"
        return lambda content: (path.write_bytes(content), READERS[name](path))
    return lambda content: TARGETS[target].read(content, folder)


def main() -> None:
    """Attack until libFuzzer's options end it."""
    if len(sys.argv) < 2 or not (sys.argv[1] in BYTES or sys.argv[1].startswith("data.")):
        sys.exit(f"expected one of {', '.join(BYTES)}, or data.SUFFIX:READER with one of {', '.join(READERS)}")
    with tempfile.TemporaryDirectory(prefix="cai-fuzz-") as folder:
        read = reader(sys.argv[1], Path(folder))

        def one(content: bytes) -> None:
            try:
                read(content)
            except CaiError:
                return

        atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
