"""A command line run in-process, and a figure that takes no time."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from figures.registry import Context, Figure, figures, table
from sasa_lab.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def lab(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`lab("train", "--arch", "sasa")` runs the command line and gives status, stdout and stderr."""

    def run(*words: object) -> Done:
        capfd.readouterr()
        status = main([str(word) for word in words])
        sys.stdout.flush()
        written = capfd.readouterr()
        return Done(status, written.out, written.err)

    return run


@dataclass
class Toy:
    """A registered figure whose runs can be counted and made to fail."""

    figure: Figure
    contexts: list[Context]
    failure: BaseException | None = None
    status: str = "supported"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """The only registered figure, "toy", while a test runs."""
    contexts: list[Context] = []

    def run(context: Context) -> dict[str, Any]:
        contexts.append(context)
        if made.failure is not None:
            raise made.failure
        return {
            "numbers": {"heights": [1.0, float(len(contexts))]},
            "tables": [table("Counts", ["model", "ours ↓", "published"], [["sasa", 1, 1], ["<relu>", 31.25, None]])],
            "findings": [{"sentence": "splitting", "status": made.status, "text": "31 atoms & more"}],
            "settings": {"steps": 3},
        }

    def draw(result: dict[str, Any]) -> dict[str, Any]:
        from matplotlib.figure import Figure as Picture

        picture = Picture(figsize=(3, 2))
        picture.subplots().plot(result["numbers"]["heights"])
        return {"figure": picture}

    figure = Figure(
        "toy", "A toy", run, draw, budget={"quick": 10.0, "standard": 20.0}, options={"store": "where the rows are"}
    )
    made = Toy(figure, contexts)
    monkeypatch.setattr(figures, "_items", {"toy": figure})
    for command in ("figure", "reproduce"):
        __import__(f"sasa_lab.commands.{command}")
        monkeypatch.setattr(sys.modules[f"sasa_lab.commands.{command}"], "load_all", lambda: None)
    yield made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
