"""The paper's sentences (sentences.json) and what the results at hand say about each.

A result carries findings {"sentence": id, "status": ..., "text": ...}. A sentence gets the worst status among its
findings: one refutation counts more than any number of supports.
"""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthetic.errors import DataError, unknown

#: worst first; the last is for sentences without any finding
STATUSES = ("refuted", "needs an assumption", "undecided", "supported", "not yet run")


@dataclass(frozen=True)
class Finding:
    """What one result says about a sentence; `file` is the result file it stands in."""

    status: str
    text: str
    file: Path
    source: str


@dataclass(frozen=True)
class Sentence:
    """A sentence of the paper in this project's words, the claims and figures that bear on it, and the findings.

    if_claims_stand is its status when its claims are as stated, `caveat` why that is not "supported".
    """

    id: str
    part: str
    sentence: str
    claims: Sequence[str]
    figures: Sequence[str]
    if_claims_stand: str = "supported"
    caveat: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The worst status among the findings, "not yet run" without any."""
        return min((finding.status for finding in self.findings), key=STATUSES.index, default=STATUSES[-1])


def sentences() -> dict[str, Sentence]:
    """All sentences by id, in the order of THEORY.md, without findings."""
    text = (importlib.resources.files("sasa_lab") / "sentences.json").read_text(encoding="utf-8")
    return {entry["id"]: Sentence(**entry) for entry in json.loads(text)}


def judge(results: Mapping[Path, Mapping[str, Any]]) -> list[Sentence]:
    """The sentences with the findings of `results` (file -> result) filed under them.

    Raises DataError for a finding with an unknown sentence or status, naming the file.
    """
    known = sentences()
    for file, result in results.items():
        for entry in result.get("findings", []):
            if entry["sentence"] not in known:
                raise DataError(f"{file}: {unknown('sentence', entry['sentence'], known)}")
            if entry["status"] not in STATUSES[:-1]:
                raise DataError(f"{file}: {unknown('status', entry['status'], STATUSES[:-1])}")
            source = " ".join(str(result[key]) for key in ("name", "profile") if key in result)
            known[entry["sentence"]].findings.append(Finding(entry["status"], entry["text"], file, source))
    return list(known.values())
