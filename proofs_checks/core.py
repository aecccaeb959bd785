"""What a claim is, how it is checked, and what counts as a check with power.

A claim has checks of two kinds. A *value* check compares a formula with an independent computation (quadrature,
enumeration, Monte Carlo, cvxpy); its twins are the formula 5 % up and 5 % down. A *truth* check tries an inequality
against the best opponents found; its twins are the bound moved just past the slack it measured, or an assumption
dropped. Every check takes the formula as its argument, so a twin is the same check with another formula. A check that
does not refute its twins has no power, and its claim fails whatever else it says.
"""

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synthetic.errors import LabError, UsageError
from synthetic.registry import Registry

Profile = Literal["quick", "standard", "paper"]
PROFILES: tuple[Profile, ...] = ("quick", "standard", "paper")
State = Literal["holds", "refuted", "undecided"]
Formula = Callable[..., Any]

#: how far a value check's twins stand from the formula
STEP = 0.05


@dataclass(frozen=True)
class Bench:
    """What a check may use: the profile, randomness of its own, and the place of trained models.

    `rng(name)` is a new generator, the same for the same seed and name: a twin meets the opponents of the original.
    """

    profile: Profile = "quick"
    seed: int = 0
    out: Path = Path("results")
    device: str = "cpu"

    def rng(self, name: str) -> np.random.Generator:
        """Generator number `name` of this seed."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def pick(self, quick: Any, standard: Any = None, paper: Any = None) -> Any:
        """The value for this profile; what is not given is as for the smaller profile."""
        standard = quick if standard is None else standard
        return {"quick": quick, "standard": standard, "paper": standard if paper is None else paper}[self.profile]


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    margin      > 0: the statement stood, < 0: it failed; relative to the quantity bounded unless `compared` says more
    resolution  |margin| at or below it decides nothing (for statistical decisions; 0 elsewhere)
    tightness   bound over best opponent found (or the inverse for upper bounds); None for values
    error       statistical error of that opponent that the margin grants, relative (0: none)
    compared    one line with the numbers: what was compared with what
    assumptions what was verified about the cases tried, one phrase each
    """

    margin: float
    resolution: float = 0.0
    tightness: float | None = None
    error: float = 0.0
    compared: str = ""
    assumptions: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """Where the margin puts the statement; NaN and anything within the resolution decide nothing."""
        if self.margin > self.resolution:
            return "holds"
        return "refuted" if self.margin < -self.resolution else "undecided"


Check = Callable[[Formula, Bench], Outcome]


@dataclass(frozen=True)
class Value:
    """A formula compared with an independent computation; twins: the formula 5 % up and down."""

    formula: Formula
    check: Check

    @property
    def name(self) -> str:
        """What stands in the table."""
        return f"value of {self.formula.__name__}"

    def run(self, bench: Bench) -> Outcome:
        """The formula as it is."""
        return self.check(self.formula, bench)

    def twins(self, bench: Bench, found: Outcome) -> dict[str, Outcome]:
        """Outcomes of the twins; all should be refuted."""
        return {
            f"{self.formula.__name__} {sign} {STEP:.0%}": self.check(scaled(self.formula, factor), bench)
            for sign, factor in (("+", 1 + STEP), ("-", 1 - STEP))
        }


@dataclass(frozen=True)
class Truth:
    """A statement tried against the best opponents found.

    bound       the formula of the bound ("below": it bounds from below, "above": from above); its twin is the bound
                moved past the measured slack. A statement without a number to move has side None.
    dropped     name -> (bench) -> Outcome: the same check with an assumption dropped, or a false variant; to be refuted
    expected    what the check should say of the statement; "refuted" for statements the lab disproves
    """

    statement: str
    bound: Formula
    check: Check
    side: Literal["below", "above"] | None = "below"
    dropped: Mapping[str, Callable[[Bench], Outcome]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What stands in the table."""
        return self.statement

    def run(self, bench: Bench) -> Outcome:
        """The statement as it is."""
        return self.check(self.bound, bench)

    def twins(self, bench: Bench, found: Outcome) -> dict[str, Outcome]:
        """Outcomes of the twins; all should be refuted."""
        outcomes = {name: check(bench) for name, check in self.dropped.items()}
        if self.side is not None and found.tightness is not None and found.tightness > 0:
            past = (1 + STEP) * (1 + found.error) / found.tightness
            factor = past if self.side == "below" else 1 / past
            outcomes[f"bound times {factor:.3g}"] = self.check(scaled(self.bound, factor), bench)
        return outcomes


@dataclass(frozen=True)
class Claim:
    """One claim of THEORY.md, or of the user's own.

    statement in one sentence; formula in plain text; assumptions, one phrase each; source (paper, theorem or proof in
    a line). `truths` decide the verdict; a claim that is only a formula is decided by its `values`.
    """

    id: str
    statement: str
    formula: str
    assumptions: tuple[str, ...]
    source: str
    values: tuple[Value, ...] = ()
    truths: tuple[Truth, ...] = ()
    expected: State = "holds"
    #: verdicts that the quick profile may also end with, for experiments too small to decide
    quick_may: tuple[State, ...] = ()

    @property
    def part(self) -> str:
        """The letter of the part of THEORY.md it belongs to."""
        return self.id[0]


@dataclass(frozen=True)
class Row:
    """One check of a claim: what it found and what became of its twins (name -> state)."""

    name: str
    kind: Literal["value", "truth"]
    outcome: Outcome
    twins: dict[str, State]


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a claim; `as_stated` is whether that is what the claim expects."""

    claim: Claim
    verdict: State
    margin: float
    tightness: float | None
    twin_refuted: bool
    assumptions: tuple[str, ...]
    seed: int
    profile: Profile
    seconds: float
    rows: tuple[Row, ...]

    @property
    def as_stated(self) -> bool:
        """The verdict is the expected one and every twin was refuted."""
        allowed = {self.claim.expected}
        if self.profile == "quick":
            allowed |= set(self.claim.quick_may)
        return self.verdict in allowed and self.twin_refuted

    def to_json(self) -> dict[str, Any]:
        """One row of `sasa-lab verify --json`."""
        return {
            "id": self.claim.id,
            "statement": self.claim.statement,
            "formula": self.claim.formula,
            "source": self.claim.source,
            "expected": self.claim.expected,
            "verdict": self.verdict,
            "margin": _finite(self.margin),
            "tightness": _finite(self.tightness),
            "twin_refuted": self.twin_refuted,
            "as_stated": self.as_stated,
            "assumptions": list(self.assumptions),
            "seed": self.seed,
            "profile": self.profile,
            "seconds": round(self.seconds, 3),
            "checks": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "state": row.outcome.state,
                    "compared": row.outcome.compared,
                    "margin": _finite(row.outcome.margin),
                    "resolution": _finite(row.outcome.resolution),
                    "tightness": _finite(row.outcome.tightness),
                    "error": _finite(row.outcome.error),
                    "twins": row.twins,
                }
                for row in self.rows
            ],
        }


CLAIMS: Registry[Claim] = Registry("claim")


def add(claim: Claim) -> Claim:
    """File a claim under its id, so that `sasa-lab verify` finds it; raises UsageError when the id is taken."""
    return CLAIMS.register(claim.id)(claim)


def verify(claim: Claim, profile: Profile = "quick", seed: int = 0, out: Path = Path("results")) -> Verdict:
    """Run every check of a claim and its twins, and say what follows.

    The truths decide: refuted if one is refuted, undecided if one is undecided or a formula fails its value check
    (nothing follows from a wrong formula), else it holds. Without truths the values decide. Raises UsageError for an
    unknown profile and for a claim without checks.
    """
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; expected one of {', '.join(PROFILES)}")
    if not (claim.values or claim.truths):
        raise UsageError(f"claim {claim.id} has no check; give it values or truths")
    bench = Bench(profile, seed, out)
    began = time.perf_counter()
    rows = [_row(check, "value", bench) for check in claim.values]
    rows += [_row(check, "truth", bench) for check in claim.truths]
    deciding = [row for row in rows if row.kind == ("truth" if claim.truths else "value")]
    states = {row.outcome.state for row in deciding}
    verdict: State = "refuted" if "refuted" in states else "undecided" if "undecided" in states else "holds"
    if claim.truths and any(row.outcome.state != "holds" for row in rows if row.kind == "value"):
        verdict = "undecided"
    tightness = [row.outcome.tightness for row in rows if row.outcome.tightness is not None]
    assumptions = dict.fromkeys(phrase for row in rows for phrase in row.outcome.assumptions)
    return Verdict(
        claim=claim,
        verdict=verdict,
        margin=min(row.outcome.margin for row in deciding),
        tightness=max(tightness) if tightness else None,
        twin_refuted=all(row.twins and set(row.twins.values()) == {"refuted"} for row in rows),
        assumptions=tuple(assumptions),
        seed=seed,
        profile=profile,
        seconds=time.perf_counter() - began,
        rows=tuple(rows),
    )


def _row(check: Value | Truth, kind: Literal["value", "truth"], bench: Bench) -> Row:
    found = check.run(bench)
    return Row(check.name, kind, found, {name: twin.state for name, twin in check.twins(bench, found).items()})


def scaled(formula: Formula, factor: float) -> Formula:
    """The same formula with every number it returns multiplied by `factor`: a twin, or a mutation.

    Whole numbers move by at least 1, away from the original.
    """

    def twin(*args: Any, **kwargs: Any) -> Any:
        return _scale(formula(*args, **kwargs), factor)

    twin.__name__ = f"{formula.__name__} x {factor:g}"
    return twin


def _scale(value: Any, factor: float) -> Any:
    if isinstance(value, bool | np.bool_):
        raise TypeError("a yes or no has no twin 5 % away; give the check a number")
    if isinstance(value, int | np.integer):
        moved = round(
            int(value) * Fraction(factor).limit_denominator(10**9)
        )  # exact, also where a float would overflow
        return moved if moved != value else int(value) + (1 if factor > 1 else -1)
    if isinstance(value, tuple):
        parts = [_scale(part, factor) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value * factor


def compare(
    ours: Any, reference: Any, tolerance: float, error: Any = 0.0, what: str = "", assumptions: tuple[str, ...] = ()
) -> Outcome:
    """Outcome of comparing a formula's values with independent ones.

    margin = 1 - max |ours - reference| / (tolerance |reference| + error): 1 when they agree exactly, negative outside;
    `tolerance` is relative, `error` absolute (5 standard errors of a Monte Carlo, a solver's gap). Raises LabError
    when a reference is not finite or nothing is compared.
    """
    ours, reference = np.atleast_1d(np.asarray(ours, float)), np.atleast_1d(np.asarray(reference, float))
    if reference.size == 0 or ours.shape != reference.shape or not np.isfinite(reference).all():
        raise LabError(f"nothing to compare: shapes {ours.shape} and {reference.shape}, or a reference is not finite")
    allowed = tolerance * np.abs(reference) + np.broadcast_to(np.asarray(error, float), reference.shape)
    away = np.abs(ours - reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(away == 0, 0.0, away / allowed)
    share = np.where(np.isnan(share), np.inf, share)
    worst = int(share.argmax())
    line = f"{what}{': ' if what else ''}{ours.flat[worst]:.6g} against {reference.flat[worst]:.6g}"
    line += f" ({reference.size} values, this the farthest)" if reference.size > 1 else ""
    return Outcome(float(1 - share.flat[worst]), compared=line, assumptions=assumptions)


def bounded(
    bound: Any,
    best: Any,
    side: Literal["below", "above"] = "below",
    error: Any = 0.0,
    what: str = "",
    assumptions: tuple[str, ...] = (),
) -> Outcome:
    """Outcome of an inequality: `bound` against the `best` opponents, entry by entry.

    For a bound from below margin = min (best + error - bound) / |best|, tightness = bound / best there; from above the
    signs and the quotient turn round. `error` is absolute: 3.1 standard errors (99.9 %, one sided) of a Monte Carlo, or
    the rounding of an exact case. The case with the smallest margin is the one reported. Raises LabError when nothing
    is compared or an opponent is not finite.
    """
    bound, best = np.atleast_1d(np.asarray(bound, float)), np.atleast_1d(np.asarray(best, float))
    if best.size == 0 or bound.shape != best.shape or not np.isfinite(best).all():
        raise LabError(f"nothing to compare: shapes {bound.shape} and {best.shape}, or an opponent is not finite")
    size = np.where(best == 0, 1.0, np.abs(best))
    granted = np.broadcast_to(np.asarray(error, float), best.shape) / size
    margin = (best - bound if side == "below" else bound - best) / size + granted
    worst = int(np.where(np.isnan(margin), -np.inf, margin).argmin())
    top, bottom = (bound, best) if side == "below" else (best, bound)
    tightness = top.flat[worst] / bottom.flat[worst] if bottom.flat[worst] > 0 else None
    line = f"{what}{': ' if what else ''}bound {bound.flat[worst]:.6g}, best found {best.flat[worst]:.6g}"
    line += f" ({best.size} cases, this the tightest)" if best.size > 1 else ""
    return Outcome(
        margin=float(margin.flat[worst]),
        tightness=None if tightness is None else float(tightness),
        error=float(granted.flat[worst]),
        compared=line,
        assumptions=assumptions,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
