"""First-letter absorption on planted dictionaries, and the two published formulas by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sasa_theory.concepts.first_letter import WordStates
from sasa_theory.concepts.letter_absorption import (
    LetterProbes,
    carried,
    letter_absorption,
    letter_interval,
    letter_probes,
    main_units,
    word_absorption,
)
from sasa_theory.models import NormalisedModel, Normaliser, build
from synthetic.errors import DataError, UsageError

LETTERS, WORDS = 3, 24


# ---- one word ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "total, share, cosine, main, fraction, full",
    [
        (2.0, [0.0, 1.0], [0.0, 0.9], [False, False], 1.0, True),  # no main unit on, another carries half
        (2.0, [0.7], [0.9], [False], 0.0, False),  # it carries less than .4
        (2.0, [0.8], [0.9], [False], 1.0, True),  # exactly .4 is enough
        (2.0, [1.0], [0.05], [False], 0.0, True),  # cosine too small for a fraction, not for full absorption
        (2.0, [1.0], [0.02], [False], 0.0, False),
        (2.0, [0.5, 1.0], [0.9, 0.9], [True, False], 1 / 1.5, False),  # g = min(1, 1.5), over g + .5
        (2.0, [1.5, 1.0], [0.9, 0.9], [True, False], 0.5 / 2.0, False),  # no more than what is missing: .5
        (2.0, [2.0, 1.0], [0.9, 0.9], [True, False], 0.0, False),  # nothing is missing
        (2.0, [-0.1, 1.0], [-0.2, 0.9], [True, False], 1.0, False),  # the main unit points away, but is on
        (4.0, [0.5] * 4, [0.9] * 4, [False] * 4, 0.0, False),  # only three absorbers count: 1.5 < 1.6
        (3.6, [0.5] * 4, [0.9] * 4, [False] * 4, 1.0, False),
        (0.0, [1.0], [0.9], [False], 0.0, False),
        (-1.0, [1.0], [0.9], [False], 0.0, False),
        (1.0, [], [], [], 0.0, False),
    ],
)
def test_published_formulas_by_hand(total, share, cosine, main, fraction, full):
    got = word_absorption(total, np.array(share), np.array(cosine), np.array(main, dtype=bool))
    assert got == (pytest.approx(fraction), full)


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_a_fraction_is_a_share_and_scale_does_not_matter(seed, units):
    rng = np.random.default_rng(seed)
    total, share = rng.uniform(0.1, 3), rng.standard_normal(units)
    cosine, main = rng.uniform(-1, 1, units), rng.random(units) < 0.4
    fraction, full = word_absorption(total, share, cosine, main)
    assert 0 <= fraction <= 1
    assert word_absorption(7 * total, 7 * share, cosine, main) == (pytest.approx(fraction), full)
    if full:
        assert not main.any()


# ---- planted dictionaries ------------------------------------------------------------------------------------------


def planted(absorbed: bool, rank: int = 1, scale: float = 1.0):
    """States e_letter + own direction of the word for every third word; a dictionary whose units for those words carry
    the letter too, so that the letter's unit is silent (absorbed), or carry the word alone.

    Unit l < 3 is for letter l, then one for each special word; TopK with two active makes the choice.
    """
    n = LETTERS * WORDS
    letter = np.arange(n) % LETTERS
    special = np.arange(n) // LETTERS % 3 == 0
    names = np.flatnonzero(special)
    width = LETTERS + len(names)
    rows = np.eye(width)[letter]
    rows[names, LETTERS + np.arange(len(names))] = 1.0
    encoder, decoder = np.zeros((width, width)), np.eye(width)
    encoder[:LETTERS, :LETTERS] = np.eye(LETTERS)
    encoder[LETTERS:, LETTERS:] = np.eye(len(names))
    if absorbed:
        encoder[LETTERS:, :LETTERS] -= np.eye(LETTERS)[letter[names]]  # the letter's unit gets 1 - 1 = 0
        decoder[LETTERS:, :LETTERS] = np.eye(LETTERS)[letter[names]]
    model = build("topk", width_in=width, n_latents=width, active_latents=2)
    if rank > 1:
        encoder, decoder = (np.kron(a, np.eye(1, rank)) for a in (encoder, decoder.T))
        decoder = decoder.T
        model = build("sasa", width_in=width, n_groups=width, group_rank=rank, active_groups=2)
    with torch.no_grad():
        model.W_enc.copy_(torch.tensor(encoder / scale))
        model.W_dec.copy_(torch.tensor(decoder * scale))
        model.b_enc.zero_()
        model.b_dec.zero_()
    train = np.arange(n) // LETTERS % 4 != 3
    states = WordStates(
        tuple(f"w{i}" for i in range(n)), letter, train, (scale * rows).astype(np.float32), np.zeros(n, dtype=int)
    )
    probes = LetterProbes(
        np.arange(LETTERS), np.eye(width)[:LETTERS], letter[:, None] == np.arange(LETTERS), np.ones(LETTERS), 0.0
    )
    return model, states, probes, special


@pytest.mark.parametrize("kind", ["columns", "groups"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_absorbed_words_get_one_and_the_twin_gets_zero(kind, rank, scale):
    model, states, probes, special = planted(True, rank, scale)
    got = letter_absorption(model, states, probes, kind)
    for number, letter in enumerate(got.letters):
        words = np.flatnonzero((states.letter == number) & ~states.train)
        np.testing.assert_allclose(letter.fraction, special[words], atol=1e-6)
        assert (letter.full == special[words]).all()
        per_unit = 2 * rank if kind == "columns" else 1
        assert letter.main.units.tolist() == [number * per_unit]
    assert got.fraction == pytest.approx(special[~states.train].mean(), abs=0.05)
    model, states, probes, _ = planted(False, rank, scale)
    twin = letter_absorption(model, states, probes, kind)
    assert (twin.fraction, twin.full) == (0.0, 0.0)
    assert twin.main_f1 == 1.0


def test_partial_absorption_is_what_the_letters_unit_lacks():
    """The letter's unit keeps a quarter, the word's units carry the rest: fraction 3/4, and no full absorption."""
    model, states, probes, special = planted(True)
    with torch.no_grad():
        model.W_enc[LETTERS:, :LETTERS] *= 0.75  # its code: 1 - 3/4
        model.W_dec[LETTERS:, :LETTERS] *= 0.75
    got = letter_absorption(model, states, probes, "columns")
    for number, letter in enumerate(got.letters):
        words = np.flatnonzero((states.letter == number) & ~states.train)
        np.testing.assert_allclose(letter.fraction, 0.75 * special[words], atol=1e-6)
        assert not letter.full.any()


# ---- what units carry ----------------------------------------------------------------------------------------------


@given(st.integers(0, 10**4), st.sampled_from(["none", "mean_scalar", "layer_norm"]), st.integers(1, 3))
@settings(deadline=None, max_examples=6)
def test_contributions_add_up_to_the_reconstruction_in_raw_units(seed, kind, rank):
    """sum_k <c_k, p> = <xhat - what no unit adds, p>, for columns and for groups, under every normalisation."""
    generator = torch.Generator().manual_seed(seed)
    x = 5 * torch.randn(40, 6, generator=generator) + torch.randn(6, generator=generator)
    inner = build("sasa", width_in=6, n_groups=5, group_rank=rank, active_groups=2)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model = NormalisedModel(inner, Normaliser.fit(kind, x))
    toward = torch.randn(x.shape, generator=generator)
    with torch.no_grad():
        nothing = model.normaliser.invert(inner.b_dec.expand(40, 6), model.normaliser.apply(x)[1])
        expected = ((model(x) - nothing) * toward).sum(dim=1).numpy()
    for units in ("columns", "groups"):
        got = carried(model, x.numpy(), toward.numpy(), units)
        total = np.bincount(got.word, weights=got.carried, minlength=40)
        np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-3)
        assert (got.activation >= 0).all() and got.unit.max() < got.n_units
        assert (np.abs(got.carried) <= got.size * toward.norm(dim=1).numpy()[got.word] + 1e-3).all()
        assert (np.diff(got.word) >= 0).all()


def test_a_signed_column_is_two_units():
    model = build("abstopk", width_in=3, n_latents=3, active_latents=1)
    with torch.no_grad():
        model.W_enc.copy_(torch.eye(3))
        model.W_dec.copy_(torch.eye(3))
    rows = np.array([[0, 2.0, 0], [0, -3.0, 0]])
    got = carried(model, rows, np.array([[0, 1.0, 0]] * 2), "columns")
    assert got.unit.tolist() == [2, 3] and got.activation.tolist() == [2.0, 3.0] and got.carried.tolist() == [2.0, -3.0]


# ---- probes and main units -----------------------------------------------------------------------------------------


def test_main_units_follow_splits_and_stop_at_the_gain():
    """Label 0 is halved between units 0 and 1; label 1 has unit 2; unit 3 is on half the time, whatever the label."""
    rng = np.random.default_rng(0)
    n = 600
    label = np.arange(n) % 3
    half = rng.random(n) < 0.5
    acts = np.stack([(label == 0) & half, (label == 0) & ~half, label == 1, rng.random(n) < 0.5], axis=1).astype(float)
    labels = label[:, None] == np.arange(2)
    split, whole = main_units(sparse.csr_array(acts), labels, rng.random(n) < 0.7)
    assert sorted(split.units.tolist()) == [0, 1] and whole.units.tolist() == [2]
    assert split.f1[1] == whole.f1[0] == 1.0 and split.f1[0] < 0.8


def test_probes_find_letters_and_leave_out_rare_ones():
    rng = np.random.default_rng(1)
    letter = np.append(np.arange(300) % 3, [7] * 4)
    rows = np.eye(8)[letter] * 3 + rng.standard_normal((304, 8)) * 0.3 + 50
    states = WordStates(("w",) * 304, letter, rng.random(304) < 0.7, rows.astype(np.float32), np.zeros(304, int))
    probes = letter_probes(states, rng)
    assert probes.letters.tolist() == [0, 1, 2] and probes.f1.min() > 0.95
    np.testing.assert_allclose(np.linalg.norm(probes.directions, axis=1), 1)
    truth = np.eye(8)[:3] - np.eye(8)[:3].mean(axis=0)
    assert (((probes.directions @ truth.T) / np.linalg.norm(truth, axis=1)).argmax(axis=1) == [0, 1, 2]).all()
    with pytest.raises(DataError, match="letters have"):
        letter_probes(WordStates(("w",) * 3, np.arange(3), np.ones(3, bool), np.eye(3), np.zeros(3, int)), rng)


def test_the_interval_is_over_letters_and_words():
    rng = np.random.default_rng(0)
    assert letter_interval([np.zeros(5), np.zeros(7)], rng) == (0.0, 0.0)
    # letters differ, their words do not
    assert letter_interval([np.zeros(50), np.ones(50)], rng) == (0.0, 1.0)
    spread = rng.random((20, 30))
    low, high = letter_interval(list(spread), rng)
    assert low < spread.mean() < high and 0.02 < high - low < 0.15
    with pytest.raises(DataError, match="letters count"):
        letter_interval([np.zeros(1)], rng)


def test_bad_input_is_named():
    model, states, probes, _ = planted(False)
    with pytest.raises(UsageError, match="'columns' or 'groups'"):
        letter_absorption(model, states, probes, "rows")
    with pytest.raises(UsageError, match="expected"):
        carried(model, states.rows[:, 1:], states.rows[:, 1:], "groups")
    silent = sparse.csr_array((6, 4))
    with pytest.raises(DataError, match="no unit"):
        main_units(silent, np.eye(6, 2, dtype=bool), np.ones(6, dtype=bool))
