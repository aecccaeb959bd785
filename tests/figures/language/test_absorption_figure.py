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
    """e_letter, and for every third word a direction of its own: a unit that many words share would be a split."""
    letter, place = np.divmod(np.arange(N * PER), PER)
    own = np.flatnonzero(place % 3 == 0)
    rows = np.zeros((N * PER, N + len(own)))
    rows[np.arange(N * PER), letter] = 10.0
    rows[own, N + np.arange(len(own))] = 10.0
    rows += 0.05 * np.random.default_rng(0).standard_normal(rows.shape)
    text = tuple(f"{LETTERS[a]}{b}" for a, b in zip(letter, place, strict=True))
    return WordStates(text, letter, place % 10 < 7, rows.astype(np.float32), np.full(len(letter), 5)), place % 3 == 0


def dictionary(absorbs: bool):
    """Unit l for letter l, and one for each word with a direction of its own: with the letter (absorbs) or without."""
    held, own = states()
    width = held.rows.shape[1]
    letter = torch.from_numpy(held.letter[own])
    encoder, decoder = torch.eye(width), torch.eye(width)
    if absorbs:
        words = N + torch.arange(len(letter))
        encoder[words, letter] = -1.0
        decoder[words, letter] = 1.0
    model = build("topk", width_in=width, n_latents=width, active_latents=2)
    with torch.no_grad():
        model.W_enc.copy_(encoder)
        model.W_dec.copy_(decoder)
        model.b_enc[:N] = -1.0  # the noise leaves nothing of a letter's unit
    return model


@pytest.fixture(scope="module")
def numbers():
    held, _ = states()
    rng = np.random.default_rng(0)
    found = [
        Dictionary("topk", 2, 0, dictionary(absorbs=False)),
        Dictionary("topk", 2, 1, dictionary(absorbs=False)),
        Dictionary("matryoshka", 2, 0, dictionary(absorbs=True)),
        Dictionary("sasa", 2, 0, dictionary(absorbs=False)),
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
    assert finding(numbers)["status"] == "undecided"  # one less, one no difference
    only = numbers | {"comparisons": [e for e in numbers["comparisons"] if e["rival"] == "matryoshka"]}
    assert finding(only)["status"] == "supported"
    assert finding(only | {"letters": numbers["letters"][:19]})["status"] == "undecided"
    silent = [entry | {"readable": False} for entry in only["comparisons"]]
    assert finding(only | {"comparisons": silent})["status"] == "undecided"
    turned = [entry | {"fraction_interval": [0.1, 0.2]} for entry in only["comparisons"]]
    assert finding(only | {"comparisons": turned})["status"] == "refuted"
    mixed = [e | {"fraction_interval": [0.1, 0.2]} if e["units"] == "groups" else e for e in only["comparisons"]]
    assert finding(only | {"comparisons": mixed})["status"] == "needs an assumption"


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
