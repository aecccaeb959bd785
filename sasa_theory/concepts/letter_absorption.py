"""First-letter absorption (Chanin et al. 2024), with the rules and thresholds of SAEBench 0.6, in raw units.

Ground truth: a logistic probe for each letter on the model's own states; p is its unit direction. Unit k of a
dictionary adds c_k to the reconstruction of a word's state h; <c_k, p> is what it carries of the letter, cos(c_k, p)
how much of it is about the letter. The *main units* of a letter are those of a k-sparse probe: the k units that speak
most for the letter (the largest weights of a non-negative l1 probe), k grown from 1 while F1 on held-out words rises by
more than .03 (main units beyond the first: the letter's feature has been split). For a held-out word that begins with
the letter, and that the ground-truth probe finds, let

    a = <h, p>,   m = sum of <c_k, p> over main units,
    A = sum of the three largest <c_k, p> > 0 over other units with cos(c_k, p) >= .1.

    absorption fraction   0 if a <= 0, m >= a or A < .4 a;   1 if m <= 0;   else g / (g + m),  g = min(A, a - m)
    full absorption       no main unit is on, and the unit with the largest <c_k, p> has cos >= .025 and carries >= .4 a

Both are averaged over a letter's words, then over the letters whose probe has F1 > .6.

Units. "columns": each column of the dictionary; a signed one counts as two units, one for each sign, because the rules
are made for codes >= 0. "groups": c_k is all that a group adds, and the probes see the norm of its coefficients, so
that a group speaks for a letter by being on (what its coordinates say within it, the columns show). For r = 1 and codes
>= 0 both are the published metric, where activation times cosine with a unit decoder row is <c_k, p>.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from sasa_theory.arguments import require_count
from sasa_theory.concepts.first_letter import LETTERS, WordStates
from sasa_theory.concepts.logistic import association, f1, fit_probes, smallest_silencing_l1
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from synthetic.errors import DataError, UsageError

Kind = Literal["columns", "groups"]

#: thresholds of the published metric
COSINE, FULL_COSINE, CARRIED, ABSORBERS, F1_GAIN, LARGEST_K, F1_PROBE = 0.1, 0.025, 0.4, 3, 0.03, 10, 0.6
#: a letter is asked about when it has this many words for training and for the test
FEWEST_TRAIN, FEWEST_TEST = 10, 5
#: l2 penalties tried for the ground-truth probes, on states of unit mean square, strong ones first
L2 = (1e-1, 1e-2, 1e-3, 1e-4)
#: l1 penalty that chooses units, as a share of the smallest that silences them all
L1_SHARE = 0.1
#: a unit is on when it adds more than this share of the state's length, in float32
ROUNDING = 1e-6
#: words encoded at once
CHUNK = 512


# ---- ground truth ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LetterProbes:
    """Ground-truth probes: letters (L,) 0 ... 25; unit directions (L, D); found (n, L) score > 0; f1 (L,) held out.

    l2 the penalty that was taken.
    """

    letters: "Int[np.ndarray, ' L']"
    directions: "Float[np.ndarray, 'L D']"
    found: "Bool[np.ndarray, 'n L']"
    f1: "Float[np.ndarray, ' L']"
    l2: float


def letter_probes(states: WordStates, rng: np.random.Generator, penalties: Sequence[float] = L2) -> LetterProbes:
    """Logistic probes for every letter with enough words, trained on the training words.

    The penalty is the one of largest mean F1 on a fifth of the training words (drawn by `rng`), then all are used.
    Raises DataError when fewer than two letters have enough words.
    """
    train, test = (np.bincount(states.letter[part], minlength=26) for part in (states.train, ~states.train))
    letters = np.flatnonzero((train >= FEWEST_TRAIN) & (test >= FEWEST_TEST))
    if len(letters) < 2:
        raise DataError(
            f"{len(letters)} letters have {FEWEST_TRAIN} words for training and {FEWEST_TEST} for the test; two are "
            "needed: take more words of each letter"
        )
    labels = states.letter[:, None] == letters
    rows = states.rows.astype(np.float64)
    centre = rows[states.train].mean(axis=0)
    rows = rows - centre
    rows /= np.sqrt((rows[states.train] ** 2).mean())
    # principal axes: the same problem, far better conditioned (a few directions of a language model hold most energy)
    axes = np.linalg.eigh(rows[states.train].T @ rows[states.train])[1]
    rows = rows @ axes
    places = np.flatnonzero(states.train)
    held = np.zeros(len(rows), dtype=bool)
    for letter in letters:
        own = places[states.letter[places] == letter]
        held[rng.choice(own, size=max(1, len(own) // 5), replace=False)] = True
    fitted = states.train & ~held
    best, l2, tried = -1.0, penalties[0], None
    for penalty in penalties:
        tried = fit_probes(rows[fitted], labels[fitted], penalty, start=tried, tolerance=1e-4)
        score = float(f1(tried.scores(rows[held]) > 0, labels[held]).mean())
        if score > best:
            best, l2, start = score, penalty, tried
    probes = fit_probes(rows[states.train], labels[states.train], l2, start=start, tolerance=1e-5)
    found = probes.scores(rows) > 0
    directions = probes.weights @ axes.T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return LetterProbes(letters, directions, found, f1(found[~states.train], labels[~states.train]), l2)


# ---- what units carry ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carried:
    """Units that are on, one entry for each (word, unit), ordered by word (the row of the states).

    activation >= 0; carried <c, p> along the word's own direction; size ||c||; unit < n_units.
    """

    word: "Int[np.ndarray, ' e']"
    unit: "Int[np.ndarray, ' e']"
    activation: "Float[np.ndarray, ' e']"
    carried: "Float[np.ndarray, ' e']"
    size: "Float[np.ndarray, ' e']"
    n_units: int


@torch.no_grad()
def carried(
    model: "SparseModel | NormalisedModel",
    rows: "Float[np.ndarray, 'n D']",
    directions: "Float[np.ndarray, 'n D']",
    kind: Kind,
) -> Carried:
    """What each active unit of `model` adds to each row along that row's direction, in raw units.

    Unit u of "columns" is column u // 2, on with a positive code when u is even, with a negative one when odd; unit g
    of "groups" is group g. Raises UsageError for another kind, and for rows of another width than the model's.
    """
    if kind not in ("columns", "groups"):
        raise UsageError(f"units are {kind!r}; expected 'columns' or 'groups'")
    if rows.shape != directions.shape or rows.shape[1] != model.width_in:
        raise UsageError(f"rows {rows.shape} and directions {directions.shape}; expected (n, {model.width_in}) both")
    decoder = model.blocks()[1].detach()
    rank = decoder.shape[1]
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(rows), CHUNK):
        x = torch.as_tensor(np.ascontiguousarray(rows[start : start + CHUNK]), dtype=decoder.dtype).to(decoder.device)
        toward = torch.as_tensor(directions[start : start + CHUNK], dtype=decoder.dtype).to(decoder.device)
        word, unit, values = model.encode(x).pairs()
        if kind == "columns":
            at, column = values.nonzero(as_tuple=True)
            code = values[at, column]
            word, unit = word[at], unit[at] * rank + column
            added = code[:, None] * decoder.flatten(0, 1)[unit]
            unit, activation = 2 * unit + (code < 0), code.abs()
        else:
            added = torch.einsum("pr,prd->pd", values, decoder[unit])
            activation = torch.linalg.vector_norm(values, dim=1)
        added = added * _raw_scale(model, x)[word]
        along, size = (added * toward[word]).sum(dim=1), torch.linalg.vector_norm(added, dim=1)
        on = size > ROUNDING * torch.linalg.vector_norm(x, dim=1)[word]
        entry = (word[on] + start, unit[on], activation[on], along[on], size[on])
        parts.append(tuple(value.cpu().numpy() for value in entry))
    words, units, activations, alongs, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    n_units = len(decoder) * (2 * rank if kind == "columns" else 1)
    activations, alongs, sizes = (value.astype(np.float64) for value in (activations, alongs, sizes))
    return Carried(words, units, activations, alongs, sizes, n_units)


def _raw_scale(model: "SparseModel | NormalisedModel", x: Tensor) -> Tensor:
    """(n, 1) what blocks in the model's units are multiplied by: a layer norm's deviation of the row, else 1."""
    context = model.normaliser.apply(x)[1] if isinstance(model, NormalisedModel) else None
    return x.new_ones(len(x), 1) if context is None else context[1]


# ---- main units ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MainUnits:
    """A letter's main units and the held-out F1 of the k-sparse probes of k = 1, 2, ... that were tried."""

    units: "Int[np.ndarray, ' k']"
    f1: tuple[float, ...]


def main_units(
    activations: sparse.csr_array, labels: "Bool[np.ndarray, 'n L']", train: "Bool[np.ndarray, ' n']"
) -> list[MainUnits]:
    """The main units of each label (module docstring), from activations (n, U) >= 0.

    Each unit is scaled to unit mean square over the training words. k-sparse probes have C = 1 as in SAEBench.
    """
    square = np.asarray(activations[train].power(2).mean(axis=0)).ravel()
    used = np.flatnonzero(square > 0)
    if len(used) == 0:
        raise DataError("no unit of the dictionary is on at any training word; it is dead on these states")
    scaled = sparse.csr_array(activations.tocsc()[:, used] / np.sqrt(square[used]))
    seen, held = scaled[train], scaled[~train].tocsc()
    limit = smallest_silencing_l1(seen, labels[train])
    chooser = fit_probes(seen, labels[train], 0.0, l1=np.maximum(L1_SHARE * limit, 1e-6), tolerance=1e-5)
    weights = np.where(limit[:, None] > 0, chooser.weights, association(seen, labels[train]).T)
    columns = seen.tocsc()
    out = []
    for label, weight in enumerate(weights):
        ranked = np.argsort(-weight, kind="stable")[: max(1, min(LARGEST_K, int((weight > 0).sum())))]
        scores: list[float] = []
        kept = 1
        for k in range(1, len(ranked) + 1):
            chosen, truth = ranked[:k], labels[:, [label]]
            probe = fit_probes(columns[:, chosen].toarray(), truth[train], 1 / train.sum())
            scores.append(float(f1(probe.scores(held[:, chosen].toarray()) > 0, truth[~train])[0]))
            if k > 1 and scores[k - 1] <= scores[k - 2] + F1_GAIN:
                break
            kept = k
        out.append(MainUnits(used[ranked[:kept]], tuple(scores)))
    return out


# ---- absorption ------------------------------------------------------------------------------------------------------


def word_absorption(
    total: float,
    share: "Float[np.ndarray, ' u']",
    cosine: "Float[np.ndarray, ' u']",
    main: "Bool[np.ndarray, ' u']",
) -> tuple[float, bool]:
    """(absorption fraction, full absorption) of one word: a, and <c_k, p>, cos(c_k, p), main for each unit on."""
    if total <= 0 or len(share) == 0:
        return 0.0, False
    top = int(share.argmax())
    full = not main.any() and cosine[top] >= FULL_COSINE and share[top] >= CARRIED * total
    others = np.sort(share[~main & (cosine >= COSINE) & (share > 0)])[-ABSORBERS:].sum()
    kept = share[main].sum()
    if kept >= total or others < CARRIED * total:
        return 0.0, bool(full)
    if kept <= 0:
        return 1.0, bool(full)
    absorbed = min(others, total - kept)
    return float(absorbed / (absorbed + kept)), bool(full)


@dataclass(frozen=True)
class LetterResult:
    """One letter: F1 of its probe and of its main units, and the two numbers for each held-out word that was found."""

    letter: str
    probe_f1: float
    main: MainUnits
    fraction: "Float[np.ndarray, ' w']"
    full: "Bool[np.ndarray, ' w']"

    @property
    def counted(self) -> bool:
        """Whether the letter enters the means: its probe is good enough, and finds some word."""
        return self.probe_f1 > F1_PROBE and len(self.fraction) > 0


@dataclass(frozen=True)
class LetterAbsorption:
    """Absorption of a dictionary: means over the letters that count, and each letter.

    fraction, full in [0, 1], lower is less absorption; main_units mean number of main units; main_f1 the mean F1 of
    the main units. NaN when no letter counts.
    """

    fraction: float
    full: float
    main_units: float
    main_f1: float
    letters: tuple[LetterResult, ...]


def letter_interval(
    words: "Sequence[Float[np.ndarray, ' w']]", rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over letters of the mean over a letter's words: letters and words drawn again.

    Raises DataError for fewer than two letters, UsageError for fewer than one resample.
    """
    require_count("resamples", resamples)
    if len(words) < 2:
        raise DataError(f"{len(words)} letters count; an interval over letters needs two")
    means = np.stack([w[rng.integers(len(w), size=(resamples, len(w)))].mean(axis=1) for w in words], axis=1)
    drawn = np.take_along_axis(means, rng.integers(len(words), size=means.shape), axis=1).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def letter_absorption(
    model: "SparseModel | NormalisedModel", states: WordStates, probes: LetterProbes, kind: Kind
) -> LetterAbsorption:
    """First-letter absorption of one dictionary, with columns or groups as units (module docstring)."""
    place = np.full(len(LETTERS), -1)
    place[probes.letters] = np.arange(len(probes.letters))
    asked = place[states.letter] >= 0
    own = place[states.letter[asked]]
    rows, train = states.rows[asked], states.train[asked]
    entries = carried(model, rows, probes.directions[own], kind)
    shape = (len(rows), entries.n_units)
    activations = sparse.csr_array((entries.activation, (entries.word, entries.unit)), shape=shape)
    mains = main_units(activations, own[:, None] == np.arange(len(probes.letters)), train)
    total = (rows.astype(np.float64) * probes.directions[own]).sum(axis=1)
    cosine = entries.carried / np.maximum(entries.size, 1e-300)
    first = np.searchsorted(entries.word, np.arange(len(rows) + 1))
    judged = ~train & probes.found[asked][np.arange(len(rows)), own]
    letters = []
    for number, (letter, main) in enumerate(zip(probes.letters, mains, strict=True)):
        answers = []
        for word in np.flatnonzero(judged & (own == number)):
            on = slice(first[word], first[word + 1])
            answers.append(
                word_absorption(total[word], entries.carried[on], cosine[on], np.isin(entries.unit[on], main.units))
            )
        fraction, full = (np.array([a[i] for a in answers]) for i in (0, 1))
        letters.append(LetterResult(LETTERS[letter], float(probes.f1[number]), main, fraction, full.astype(bool)))
    counted = [one for one in letters if one.counted]

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    return LetterAbsorption(
        fraction=mean([float(one.fraction.mean()) for one in counted]),
        full=mean([float(one.full.mean()) for one in counted]),
        main_units=mean([len(one.main.units) for one in counted]),
        main_f1=mean([one.main.f1[len(one.main.units) - 1] for one in counted]),
        letters=tuple(letters),
    )
