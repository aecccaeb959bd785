"""`sasa-lab verify` as a user meets it: table, JSON, exit status, a claim of one's own, stop and resume."""

import json
from pathlib import Path

import pytest

from sasa_lab.cli import main
from sasa_lab.commands import verify as command

PLUGIN = """
from proofs_checks import Claim, Truth, add, bounded

def floor(n):
    return 1.0 / n

def against(best):
    return lambda formula, bench: bounded(formula(4), best)

add(Claim("Z1", "1/n stays below 1/3 at n = 4", "1/n <= 1/3", ("n = 4",), "a test",
          truths=(Truth("below", floor, against(1 / 3)),)))
add(Claim("Z2", "1/n stays below 1/5 at n = 4", "1/n <= 1/5", ("n = 4",), "a test",
          truths=(Truth("below", floor, against(1 / 5)),)))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    file = tmp_path_factory.mktemp("plugin") / "verify_claims.py"
    file.write_text(PLUGIN, encoding="utf-8")
    return str(file)


def test_one_claim_prints_a_table_and_writes_json_and_a_report(tmp_path, capsys):
    file = tmp_path / "verdicts.json"
    assert main(["verify", "--claim", "A1", "--json", str(file), "--out", str(tmp_path), "--seed", "3"]) == 0
    assert "A1     holds    holds" in capsys.readouterr().out
    (row,) = json.loads(file.read_text(encoding="utf-8"))["claims"]
    assert row["id"] == "A1" and row["twin_refuted"] and row["seed"] == 3 and row["assumptions"]
    assert "Claims checked" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "verify" / "quick-A1" / "verdicts").exists()


def test_a_claim_of_the_users_own_is_verified_and_a_false_one_fails(tmp_path, plugin, capsys):
    base = ["verify", "--plugin", plugin, "--out", str(tmp_path)]
    assert main([*base, "--claim", "Z1"]) == 0
    assert main([*base, "--claim", "Z2"]) == 1
    shown = capsys.readouterr()
    assert "Z2     refuted" in shown.out and "bound 0.25, best found 0.2" in shown.out
    assert "not as stated: Z2" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--claim", "A22"], "unknown claim 'A22'; did you mean 'A2'?"),
        (["--part", "Q"], "unknown part 'Q'"),
        (["--part", "A", "--claim", "C4"], "no claim is in part A and named C4"),
        (["--profile", "fast"], "invalid choice"),
    ],
)
def test_what_does_not_exist_is_said(tmp_path, capsys, words, said):
    assert main(["verify", "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_number_stands_for_its_variants():
    assert [claim.id for claim in command.choose(None, ["C4"])] == ["C4a", "C4b"]
    assert [claim.id for claim in command.choose(None, ["B5"])] == ["B5"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    def stop_at(name, options, plugins):
        if name == "A5":
            raise KeyboardInterrupt
        return real(name, options, plugins)

    real = command._check
    words = ["verify", "--claim", "A1", "--claim", "A5", "--jobs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(command, "_check", stop_at)
    assert main(words) == 1
    monkeypatch.setattr(command, "_check", lambda name, options, plugins: real(name, options, plugins))
    assert main(words) == 0
    assert "1 claims were checked before" in capsys.readouterr().out


def test_verdicts_become_findings_about_the_papers_sentences():
    def row(name, verdict="holds", as_stated=True):
        return {"id": name, "verdict": verdict, "as_stated": as_stated}

    def status(rows, sentence):
        return {entry["sentence"]: entry["status"] for entry in command.findings(rows)}[sentence]

    assert status([row("A1"), row("A2")], "splitting") == "supported"
    assert status([row("A1", "refuted", False), row("A2")], "splitting") == "refuted"
    assert status([row("C4a"), row("C4b", "refuted")], "soft-routing") == "needs an assumption"
    assert status([row("D3", "undecided"), row("D1")], "samples") == "undecided"
    assert status([row("C8")], "released-variant") == "refuted"


def test_the_worked_example_of_the_readme_holds_and_its_twin_is_refuted(tmp_path, capsys):
    example = Path(__file__).resolve().parents[2] / "examples" / "claim_ball.py"
    words = ["verify", "--plugin", str(example), "--claim", "A3-ball", "--details", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "an ellipsoid refuted" in capsys.readouterr().out
