"""Figure `absorption` on planted states: one dictionary absorbs, its twin does not, a third has no letters."""

import json

import numpy as np
import pytest
import torch

from figures.language.absorption import Dictionary, finding, measure
from figures.language.absorption_draw import PUBLISHED, draw, tables
from figures.registry import figures
from sasa_theory.concepts.first_letter import LETTERS, WordStates
from sasa_theory.concepts.letter_absorption import letter_probes
from sasa_theory.models import build
from synthetic.errors import UsageError

N, PER = 22, 30  # letters, words of each


def states() -> tuple[WordStates, np.ndarray]:
    """e_letter, and for every third word a common direction that says which third it is."""
    letter, place = np.divmod(np.arange(N * PER), PER)
    rows = 10 * np.eye(N + 1)[letter]
    third = place % 3 == 0
    rows[third, N] = 10.0
    rows += 0.05 * np.random.default_rng(0).standard_normal(rows.shape)
    text = tuple(f"{LETTERS[a]}{b}" for a, b in zip(letter, place, strict=True))
    return WordStates(text, letter, place % 10 < 7, rows.astype(np.float32), np.full(len(letter), 5)), third


def dictionary(architecture: str, absorbs: bool, told: bool = True):
    """Unit l for letter l, unit N + l for its words of the third: with the letter (absorbs) or without it."""
    width, units = N + 1, 2 * N
    extra = {"sasa": {"n_groups": units, "group_rank": 1, "active_groups": 2}}
    model = build(architecture, width_in=width, **extra.get(architecture, {"n_latents": units, "active_latents": 2}))
    encoder, decoder, bias = torch.zeros(width, units), torch.zeros(units, width), torch.zeros(units)
    for a in range(N):
        encoder[a, a] = decoder[a, a] = 1.0
        encoder[a, N + a] = encoder[N, N + a] = 1.0
        bias[N + a] = -10.0  # on where both are
        decoder[N + a, N] = 1.0
        if absorbs:
            encoder[N, a] = -1.0
            decoder[N + a, a] = 1.0
    if not told:
        encoder[:N], decoder[:, :N] = 0.0, 0.0
    with torch.no_grad():
        model.W_enc.copy_(encoder)
        model.W_dec.copy_(decoder)
        if "b_enc" in dict(model.named_parameters()):
            model.b_enc.copy_(bias)
    return model


@pytest.fixture(scope="module")
def numbers():
    held, _ = states()
    rng = np.random.default_rng(0)
    found = [
        Dictionary("topk", 2, 0, dictionary("topk", absorbs=False)),
        Dictionary("topk", 2, 1, dictionary("topk", absorbs=False)),
        Dictionary("matryoshka", 2, 0, dictionary("topk", absorbs=True)),
        Dictionary("sasa", 2, 0, dictionary("topk", absorbs=False)),
    ]
    made = measure(found, held, letter_probes(held, rng), rng)
    return made | {"model": "planted", "hook": "none", "gpt2": False, "left_out": {"too rare": 3}}


def cell(numbers, architecture, units="columns"):
    (found,) = (c for c in numbers["cells"] if (c["architecture"], c["units"]) == (architecture, units))
    return found


def test_who_absorbs_is_seen_and_who_does_not_is_not(numbers):
    assert len(numbers["letters"]) == N and min(numbers["probe_f1"].values()) > 0.95
    third = states()[1][~states()[0].train].mean()
    assert cell(numbers, "matryoshka")["fraction"] == [pytest.approx(third, abs=0.05)]
    assert cell(numbers, "matryoshka")["full"] == [pytest.approx(third, abs=0.05)]
    for name, units in (("topk", "columns"), ("sasa", "columns"), ("sasa", "groups")):
        assert max(cell(numbers, name, units)["fraction"]) < 0.01
    low, high = cell(numbers, "matryoshka")["fraction_interval"]
    assert low < third < high
    by = {(entry["units"], entry["rival"]): entry for entry in numbers["comparisons"]}
    assert by["groups", "matryoshka"]["fraction_interval"][1] < 0 and by["columns", "matryoshka"]["readable"]
    assert by["columns", "topk"]["fraction"] == pytest.approx(0, abs=0.01)


def test_the_finding_needs_a_majority_letters_and_readable_units(numbers):
    assert finding(numbers, decided=True)["status"] == "undecided"  # one less, one no difference
    only = numbers | {"comparisons": [e for e in numbers["comparisons"] if e["rival"] == "matryoshka"]}
    assert finding(only, decided=True)["status"] == "supported"
    assert finding(only, decided=False)["status"] == "undecided"
    assert finding(only | {"letters": numbers["letters"][:19]}, decided=True)["status"] == "undecided"
    silent = [entry | {"readable": False} for entry in only["comparisons"]]
    assert finding(only | {"comparisons": silent}, decided=True)["status"] == "undecided"
    turned = [entry | {"fraction_interval": [0.1, 0.2]} for entry in only["comparisons"]]
    assert finding(only | {"comparisons": turned}, decided=True)["status"] == "refuted"
    mixed = [e | {"fraction_interval": [0.1, 0.2]} if e["units"] == "groups" else e for e in only["comparisons"]]
    assert finding(only | {"comparisons": mixed}, decided=True)["status"] == "needs an assumption"


def test_tables_and_picture_come_from_the_numbers_alone(numbers):
    again = json.loads(json.dumps(numbers, allow_nan=False))
    made = tables(again)
    assert [len(t["rows"]) for t in made] == [4, 4, 4]
    assert "another model" in made[2]["title"] and made[0]["rows"][0][-1] is None
    gpt2 = tables(again | {"gpt2": True, "cells": [c | {"l0": 60} for c in again["cells"]]})
    assert len(gpt2) == 2 and gpt2[0]["rows"][0][-1] == PUBLISHED["topk"][60]
    assert set(draw({"numbers": again})) == {"figure"}


def test_it_is_registered_and_names_what_is_missing(tmp_path):
    from figures import Context

    figure = figures["absorption"]
    assert {"config", "text"} <= set(figure.options) and figure.needs
    with pytest.raises(UsageError, match="config"):
        figure.run(Context("quick", (0,), tmp_path))
