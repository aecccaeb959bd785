"""`sasa-lab certify`: its numbers in the result and the report, and the mistakes it answers in one sentence."""

import json
from pathlib import Path

import pytest

WORLD = ["--world", "three-manifolds"]


def _trained(lab, architecture: str, *settings: str) -> str:
    words = ["--arch", architecture, *WORLD, "--steps", "10", "--batch-size", "64"]
    done = lab("train", *words, *(["--set", *settings] if settings else []))
    assert done.status == 0, done.err
    return done.out.split()[-1]


def _only_result() -> dict:
    (file,) = Path("results/certify").rglob("result.json")
    return json.loads(file.read_text())


def test_maps_are_certified_and_stand_in_the_report(lab, here):
    path = _trained(lab, "sasa", "n_groups=8", "active_groups=1", "nuclear=0.01")
    done = lab("certify", path, *WORLD, "--samples", 300, "--minutes", 0.03)
    assert done.status == 0, done.err
    result = _only_result()
    found = result["certificate"]
    assert 0 < found["bound"] <= found["best"] <= found["same_rank"] <= found["trained"]
    # one group for each row: the problem splits into slices, which are solved to the end
    assert found["best"] - found["bound"] <= 1e-2 * found["energy"]
    assert found["rows"] == 300 and result["settings"]["lam"] == 0.01
    for text in (done.out, Path("results/report.html").read_text()):
        assert "dual bound" in text and "held-out rows" in text


def test_codes_are_certified_with_half_the_training_coefficient(lab, here):
    path = _trained(lab, "relu", "n_latents=32", "coefficient=0.3", "target_l0=none")
    done = lab("certify", path, *WORLD, "--samples", 200)
    assert done.status == 0, done.err
    result = _only_result()
    found = result["certificate"]
    assert result["settings"]["lam"] == pytest.approx(0.15)
    assert 0 < found["bound"] <= found["psi"] <= found["cost"]
    assert [(floor["feature"], floor["d"]) for floor in result["floors"]] == [(0, 2), (1, 3)]
    assert all(floor["floor"] < floor["psi"] for floor in result["floors"])
    text = Path("results/report.html").read_text()
    assert "amortisation gap" in text and "B4 floor" in text


def test_mistakes_are_answered_in_one_sentence_and_leave_no_result(lab, here):
    topk = _trained(lab, "topk", "n_latents=16", "active_latents=2")
    for words, said in {
        (topk, *WORLD): "--lam",
        (topk, *WORLD, "--lam", "-1"): "--lam",
        (topk, *WORLD, "--lam", "0.1", "--samples", "1"): "--samples is 1",
        (topk, *WORLD, "--lam", "0.1", "--minutes", "0"): "--minutes is 0",
        (topk, *WORLD, "--lam", "0.1", "--name", "../mine"): "without slashes",
        (topk, "--world", "smoke", "--lam", "0.1"): "width",
        (topk,): "--world",
        ("nowhere", *WORLD): "nowhere",
    }.items():
        done = lab("certify", *words)
        assert done.status == 2 and said in done.err and done.err.count("\n") == 1, done.err
    assert not Path("results/certify").exists()
    assert lab("certify", topk, *WORLD, "--lam", "0.1", "--samples", "100").status == 0
