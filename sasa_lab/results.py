"""Result files: what a run measured and under what, and the pictures drawn from that file alone.

    OUT/<figure>/<profile>/result.json      the figure's result with its provenance
    OUT/<figure>/<profile>/figure.svg .png  drawn from result.json as read back, never from memory
    OUT/evaluate/<name>/result.json         what `sasa-lab evaluate` measured
    OUT/certify/<name>/result.json          what `sasa-lab certify` found
    OUT/verify/<profile>/result.json        the verdicts of `sasa-lab verify`
    OUT/runs/                               trained models, shared by figures (sasa_theory.training.runs)

Every file is written whole or not at all.
"""

import datetime
import hashlib
import importlib.metadata
import io
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sasa_theory.files import read_json, write_bytes, write_json
from synthetic.errors import DataError, UsageError

if TYPE_CHECKING:
    from figures.registry import Context, Figure

log = logging.getLogger(__name__)

#: folders of OUT that hold no result to show
SKIPPED = ("runs",)
#: packages whose sources decide what a figure measures
MEASURING = ("synthetic", "sasa_theory", "figures")
#: packages whose sources decide what a claim's check says
CHECKING = ("synthetic", "sasa_theory", "proofs_checks")
#: fixes the ids inside SVG files, so that equal results give equal files
HASH_SALT = "sasa-lab"


def lab_version() -> str:
    """Version of the installed sasa-lab."""
    return importlib.metadata.version("sasa-lab")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where and when a result was made: versions, commit, device, processor, threads, date."""
    import numpy
    import torch

    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "versions": {
            "sasa-lab": lab_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "commit": commit(),
        "code": code(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@cache
def commit() -> str | None:
    """The git commit of the checkout this package runs from ("-changed" if files differ), None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-changed" if changed else "")


@cache
def code(packages: tuple[str, ...] = MEASURING) -> str:
    """A hash of the sources and data files of the packages that measure: other code, other results."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".json"):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cpu_name() -> str:
    """The processor's name, e.g. "AMD EPYC 7B13"."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def result_file(out: Path, name: str, profile: str) -> Path:
    """Where the result of a figure under a profile stands."""
    return out / name / profile / "result.json"


def named_file(folder: Path, name: str, checkpoint: Path) -> Path:
    """Where a result about a checkpoint goes, folder/name/result.json.

    Raises UsageError for a name that is no folder name or that holds another checkpoint's result.
    """
    file = folder / name / "result.json"
    if file.parent.resolve().parent != folder.resolve():
        raise UsageError(f"--name {name!r} cannot name a folder below {folder}; give a name without slashes")
    if file.is_file():
        other = read_result(file).get("settings", {}).get("checkpoint")
        if other != str(checkpoint.resolve()):
            raise UsageError(f"{file} holds the numbers of {other}; give this result another --name")
    return file


def save_figure_result(figure: "Figure", context: "Context", measured: Mapping[str, Any], seconds: float) -> Path:
    """Write result.json of a figure: what it measured, its settings and its provenance; returns the path."""
    result = {
        "kind": "figure",
        "name": figure.name,
        "title": figure.title,
        "profile": context.profile,
        "seeds": list(context.seeds),
        "options": dict(context.options),
        "budget_seconds": figure.budget[context.profile],
        "seconds": round(seconds, 2),
        **provenance(context.device),
        "findings": [],
        "tables": [],
        "settings": {},
        **measured,
    }
    return write_json(result_file(context.out, figure.name, context.profile), result)


def is_current(result: Mapping[str, Any], context: "Context") -> bool:
    """Whether a result was made by this code with the same profile, seeds and options."""
    return (
        result.get("code") == code()
        and result.get("profile") == context.profile
        and result.get("seeds") == list(context.seeds)
        and result.get("options") == dict(context.options)
    )


def kept_result(name: str, context: "Context") -> dict[str, Any] | None:
    """The figure's result at hand, where it is current, so that it need only be drawn again."""
    file = result_file(context.out, name, context.profile)
    return result if file.is_file() and is_current(result := read_result(file), context) else None


def draw(figure: "Figure", file: Path) -> list[Path]:
    """Draw a figure from its result file into SVG and PNG beside it; returns the pictures' paths."""
    pictures = figure.draw(read_result(file))
    return [path for stem, picture in pictures.items() for path in save_picture(picture, file.parent / stem)]


def save_picture(picture: Any, stem: Path) -> list[Path]:
    """Write a matplotlib Figure as `stem`.svg and `stem`.png; equal pictures give equal bytes."""
    import matplotlib

    written = []
    with matplotlib.rc_context({"svg.hashsalt": HASH_SALT}):
        for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 150})):
            buffer = io.BytesIO()
            picture.savefig(buffer, format=suffix, **options)
            # with_name, not with_suffix: a stem may contain a dot
            target = stem.with_name(f"{stem.name}.{suffix}")
            written.append(write_bytes(target, buffer.getvalue()))
    return written


def read_result(file: Path) -> dict[str, Any]:
    """A result file; raises DataError when it is not a JSON object."""
    result = read_json(file)
    if not isinstance(result, dict):
        raise DataError(f"{file} does not hold a result (a JSON object); remove it and run again")
    return result


def find_results(out: Path) -> list[Path]:
    """Every result.json under `out`, sorted; trained models are left out."""
    found = (path for path in out.rglob("result.json") if path.relative_to(out).parts[0] not in SKIPPED)
    return sorted(found)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
