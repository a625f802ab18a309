"""Fingerprints, seeds and uniform numbers, all derived from content by one hash."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(parts: tuple[Any, ...], size: int) -> bytes:
    return hashlib.blake2b(canonical_json(parts).encode("utf-8", "surrogatepass"), digest_size=size).digest()


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that identify JSON-like values."""
    return _digest(parts, 8).hex()


def derive_seed(*parts: Any) -> int:
    """A sampling seed in [0, 2**31), the same for the same parts."""
    return int.from_bytes(_digest(parts, 8), "big") % 2**31


def uniform(*parts: Any) -> float:
    """A number in the open interval (0, 1), uniform over parts and the same for the same parts."""
    return (int.from_bytes(_digest(parts, 8), "big") // 2**11 + 0.5) / 2**53
