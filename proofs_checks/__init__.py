"""Every claim of THEORY.md as a small object: statement, assumptions, source, checks, and the twins they must refute.

`claims()` lists them; `verify(claim, profile, seed)` runs one. A claim of your own is a `Claim` with `Value` and
`Truth` checks, filed with `add` (see the README).
"""

import importlib
import re

from proofs_checks.core import (
    CLAIMS,
    Bench,
    Claim,
    Outcome,
    Truth,
    Value,
    Verdict,
    add,
    bounded,
    compare,
    scaled,
    verify,
)

__all__ = [
    "CLAIMS",
    "Bench",
    "Claim",
    "Outcome",
    "Truth",
    "Value",
    "Verdict",
    "add",
    "bounded",
    "claims",
    "compare",
    "scaled",
    "verify",
]

#: modules whose import files the claims of each part
PARTS = (
    "representation",
    "covering",
    "l1_risk",
    "l1_tiling",
    "l1_descent",
    "l1_path",
    "consolidation",
    "soft_routing",
    "recovery",
    "samples",
)


def claims() -> list[Claim]:
    """Every claim, in the order of THEORY.md; claims of a plugin come after those of their letter."""
    for part in PARTS:
        importlib.import_module(f"proofs_checks.{part}")
    return sorted((CLAIMS[name] for name in CLAIMS), key=lambda claim: _order(claim.id))


def _order(name: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"([A-Z])(\d+)(.*)", name)
    return (match[1], int(match[2]), match[3]) if match else (name[:1], 10**6, name)
