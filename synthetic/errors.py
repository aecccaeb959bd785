"""Errors a user can act on: each message names the value, what was expected and what to do.

The command line turns a `UsageError` into exit status 2 and every other `LabError` into exit status 1; anything
else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """Something failed that the user can understand and repair (exit status 1)."""

    exit_status = 1


class UsageError(LabError, ValueError):
    """The request itself cannot be met: unknown name, impossible world, wrong shape (exit status 2)."""

    exit_status = 2


class DataError(LabError):
    """Data on disk or in a stream is broken: NaN, flipped byte, missing tensor (exit status 1)."""


class Interrupted(LabError):
    """A run was stopped on purpose (signal or time limit) after it had saved its state (exit status 1)."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UsageError:
    """An error for an unknown name that says the nearest valid one.

    `unknown("manifold", "circel", ["circle", "disk"])` reads
    "unknown manifold 'circel'; did you mean 'circle'? Known: circle, disk".
    """
    names = sorted(choices)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return UsageError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names) or 'none'}")
