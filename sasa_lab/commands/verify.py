"""`sasa-lab verify`: every claim, its checks and their twins."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from proofs_checks import CLAIMS, Claim, claims, verify
from sasa_lab.profiles import Profile
from sasa_lab.report import show, write_report
from sasa_lab.results import CHECKING, code, provenance
from sasa_lab.running import tell
from sasa_lab.sentences import sentences
from sasa_theory.files import read_json, write_json
from synthetic.errors import UsageError, unknown
from synthetic.registry import load_plugin, loaded_plugins

COLUMNS = ["claim", "verdict", "expected", "margin", "tightness", "twin refuted", "seconds", "statement"]
NOTE = (
    "Margin: how far from the threshold the statement stood, relative; negative would be a failure. Tightness: bound "
    "over the best opponent found. Twin refuted: whether the same check refuted every deliberately false variant."
)


@dataclass(frozen=True)
class Options:
    """Check every claim of the lab, each with deliberately false twins that the same check must refute.

    Prints a table and writes OUT/verify/PROFILE/result.json, which enters the report. The exit status is 0 only if
    every verdict is as the claim states it and every twin was refuted. A stopped run goes on where it was.

    Example: sasa-lab verify --part C --profile quick
    """

    part: Annotated[str | None, tyro.conf.arg(metavar="LETTER")] = None
    """only the claims of this part: A, B, C or D"""
    claim: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID"), tyro.conf.UseAppendAction] = ()
    """only this claim (C4 means C4a and C4b); may be given more than once"""
    profile: Profile = "quick"
    """how much to try: quick (3 minutes on 2 cores), standard or paper"""
    seed: int = 0
    """seed of the cases and opponents tried"""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """also write the verdicts to this file"""
    out: Path = Path("results")
    """directory for the result, trained models and the report"""
    jobs: int = 0
    """claims checked at a time (default: one per core)"""
    details: bool = False
    """also print what each check compared"""


def run(options: Options) -> int:
    chosen = choose(options.part, options.claim)
    began = time.perf_counter()
    selection = "-".join([options.profile, *([options.part] if options.part else []), *options.claim])
    folder = options.out / "verify" / selection.replace("'", "-prime")
    rows = _verdicts(chosen, options, folder / "verdicts")
    seconds = time.perf_counter() - began
    write_json(folder / "result.json", _result(rows, options, selection, seconds))
    for file in (folder / "verdicts").glob("*.json"):
        file.unlink()
    (folder / "verdicts").rmdir()
    _print(rows, options.details)
    tell(f"{len(rows)} claims, {seconds:.0f} s; {folder / 'result.json'}")
    if options.json is not None:
        write_json(options.json, {"claims": rows})
        tell(f"verdicts: {options.json}")
    tell(f"report: {write_report(options.out)}")
    wrong = [row["id"] for row in rows if not row["as_stated"]]
    if wrong:
        sys.stderr.write(f"sasa-lab: error: not as stated: {', '.join(wrong)}; --details says what was compared\n")
    return 1 if wrong else 0


def choose(part: str | None, names: Sequence[str]) -> list[Claim]:
    """The claims asked for, in order; raises UsageError for a part or claim that does not exist."""
    known = claims()
    if part is not None and part not in {claim.part for claim in known}:
        raise unknown("part", part, {claim.part for claim in known})
    wanted: set[str] = set()
    for name in names:
        exact = {claim.id for claim in known if claim.id == name}
        variants = {claim.id for claim in known if claim.id[: len(name)] == name and claim.id[len(name) :].isalpha()}
        if not exact and not variants:
            raise unknown("claim", name, CLAIMS)
        wanted |= exact or variants
    found = [c for c in known if (part is None or c.part == part) and (not names or c.id in wanted)]
    if not found:
        raise UsageError(f"no claim is in part {part} and named {', '.join(names)}; give one of the two options")
    return found


def _verdicts(chosen: Sequence[Claim], options: Options, folder: Path) -> list[dict[str, Any]]:
    """A row for every claim; those that a stopped run of the same code and seed had finished are read back."""
    key = {"code": code(CHECKING), "seed": options.seed, "profile": options.profile, "plugins": loaded_plugins()}
    rows: dict[str, dict[str, Any]] = {}
    for claim in chosen:
        file = _place(folder, claim.id)
        if file.is_file() and (saved := read_json(file)).get("key") == key:
            rows[claim.id] = saved["row"]
    todo = [claim.id for claim in chosen if claim.id not in rows]
    if rows:
        tell(f"{len(rows)} claims were checked before this run was stopped")
    jobs = min(options.jobs or os.cpu_count() or 1, len(todo))
    for row in tqdm(_run(todo, options, jobs), total=len(todo), desc=f"verify -> {folder.parent}", disable=None):
        write_json(_place(folder, row["id"]), {"key": key, "row": row})
        rows[row["id"]] = row
    folder.mkdir(parents=True, exist_ok=True)
    return [rows[claim.id] for claim in chosen]


def _run(names: Sequence[str], options: Options, jobs: int) -> Iterable[dict[str, Any]]:
    """Verdicts as they come, from `jobs` processes of one thread each, or from this process."""
    if jobs <= 1:
        return (_check(name, options, ()) for name in names)
    from joblib import Parallel, delayed, parallel_config

    plugins = tuple(loaded_plugins())
    with parallel_config(backend="loky", inner_max_num_threads=1):
        rows: Iterable[dict[str, Any]] = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)(
            delayed(_check)(name, options, plugins) for name in names
        )
    return rows


def _check(name: str, options: Options, plugins: Sequence[str]) -> dict[str, Any]:
    """One claim's verdict, here or in a worker process."""
    for plugin in plugins:
        load_plugin(plugin)
    claims()
    return verify(CLAIMS[name], options.profile, options.seed, options.out).to_json()


def _place(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(chr(39), '-prime')}.json"


def _result(rows: Sequence[dict[str, Any]], options: Options, name: str, seconds: float) -> dict[str, Any]:
    table = [
        [
            row["id"],
            row["verdict"],
            row["expected"],
            row["margin"],
            row["tightness"],
            row["twin_refuted"],
            row["seconds"],
            row["statement"],
        ]
        for row in rows
    ]
    compared = [
        [row["id"], check["name"], check["state"], check["compared"], ", ".join(check["twins"])]
        for row in rows
        for check in row["checks"]
    ]
    return {
        "kind": "verification",
        "name": f"verify {name}",
        "title": f"Claims checked ({name})",
        "profile": options.profile,
        "seeds": [options.seed],
        "seconds": round(seconds, 2),
        **provenance(),
        "findings": findings(rows),
        "tables": [
            {"title": "Verdicts", "columns": COLUMNS, "rows": table, "note": NOTE},
            {
                "title": "What was compared",
                "columns": ["claim", "check", "state", "compared", "twins refuted by the same check"],
                "rows": compared,
                "note": "",
            },
        ],
        "settings": {"part": options.part, "claims": [row["id"] for row in rows], "plugins": loaded_plugins()},
        "claims": list(rows),
    }


def findings(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What the verdicts say about the paper's sentences: one finding for every sentence with a claim among them.

    As stated, a sentence gets the status that sentences.json foresees (`if_claims_stand`); a claim that is not as
    stated refutes it or leaves it undecided.
    """
    found = []
    by_id = {row["id"]: row for row in rows}
    for sentence in sentences().values():
        bearing = [row for name, row in by_id.items() if any(_names(claim, name) for claim in sentence.claims)]
        if not bearing:
            continue
        wrong = [row for row in bearing if not row["as_stated"]]
        undecided = [row for row in bearing if row["verdict"] == "undecided"]
        if wrong:
            status = "refuted" if any(row["verdict"] == "refuted" for row in wrong) else "undecided"
        else:
            status = "undecided" if undecided else sentence.if_claims_stand
        text = ", ".join(f"{row['id']} {row['verdict']}" for row in bearing)
        if sentence.caveat:
            text += f": {sentence.caveat}"
        found.append({"sentence": sentence.id, "status": status, "text": text})
    return found


def _names(claim: str, name: str) -> bool:
    """Whether `claim` of a sentence is this claim or the number it belongs to (C4 means C4a and C4b)."""
    return name == claim or (name.startswith(claim) and name[len(claim) :].isalpha())


def _print(rows: Sequence[dict[str, Any]], details: bool) -> None:
    cells = [COLUMNS[:7]]
    for row in rows:
        numbers = [show(row["margin"]), show(row["tightness"]), show(row["twin_refuted"]), f"{row['seconds']:.1f}"]
        cells.append([row["id"], row["verdict"], row["expected"], *numbers])
    widths = [max(len(row[i]) for row in cells) for i in range(7)]
    for number, line in enumerate(cells):
        tell("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        shown = rows[number - 1 : number] if number else []
        for row in shown if details or not all(row["as_stated"] for row in shown) else []:
            for check in row["checks"]:
                twins = ", ".join(f"{twin} {state}" for twin, state in check["twins"].items())
                tell(f"    {check['name']}: {check['state']}; {check['compared']}; twins: {twins or 'none'}")
            tell(f"    assumptions tested: {', '.join(row['assumptions']) or 'none stated'}")
