"""Who is active: exactly s, exact rates, stated correlations, families and exclusion."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from synthetic import Support
from synthetic.errors import UsageError
from synthetic.rates import winning_rates

SEEDS = st.integers(0, 2**31)
#: standard errors a frequency may be off; a normal deviate is this large once in 1e10 times
Z = 6.5


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(support: Support, rows: int, seed: int) -> torch.Tensor:
    """(rows, n) bool, after checking that the pairs are sorted and distinct."""
    row, feature = support.sample(rows, rng(seed))
    key = row * support.n + feature
    assert bool((key[1:] > key[:-1]).all())
    active = torch.zeros(rows, support.n, dtype=torch.bool)
    active[row, feature] = True
    return active


def off_by(hits: torch.Tensor, rates: torch.Tensor) -> float:
    """Largest deviation of the columns' frequencies from `rates`, in standard errors (plus one count)."""
    n = len(hits)
    error = (rates * (1 - rates) / n).clamp_min(0).sqrt() + 1 / n
    return float(((hits.double().mean(dim=0) - rates).abs() / error).max())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.data(), SEEDS)
def test_exactly_s_are_active(n: int, data: st.DataObject, seed: int) -> None:
    s = data.draw(st.integers(1, n))
    support = Support({"law": "exact", "active": s}, n, rng(0))
    active = drawn(support, 50, seed)
    assert bool((active.sum(dim=1) == s).all())
    assert support.rates.tolist() == pytest.approx([s / n] * n)


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 6), st.data(), SEEDS)
def test_every_subset_is_equally_likely(n: int, data: st.DataObject, seed: int) -> None:
    s = data.draw(st.integers(1, n - 1))
    active = drawn(Support({"law": "exact", "active": s}, n, rng(0)), 8000, seed)
    code = (active.long() * 2 ** torch.arange(n)).sum(dim=1)
    subsets = [sum(2**i for i in members) for members in itertools.combinations(range(n), s)]
    hits = code[:, None] == torch.tensor(subsets)
    assert bool(hits.any(dim=1).all())
    assert off_by(hits, torch.full((len(subsets),), 1 / len(subsets), dtype=torch.float64)) < Z


@st.composite
def rate_laws(draw: st.DrawFn, n: int) -> Any:
    """Rates on both sides of the switch between the sparse and the dense way to draw cells."""
    top = draw(st.floats(0.002, 1.0))
    return draw(
        st.sampled_from(
            [
                {"law": "constant", "rate": top},
                {"law": "zipf", "max": top, "exponent": draw(st.floats(0, 1.2))},
                {"law": "zipf", "max": top, "min": top * draw(st.floats(0.01, 1)), "exponent": 0.5, "order": "listed"},
                [max(0.002, top * draw(st.floats(0, 1))) for _ in range(n)],
            ]
        )
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.data(), SEEDS)
def test_independent_rates(n: int, data: st.DataObject, seed: int) -> None:
    support = Support({"law": "independent", "rates": data.draw(rate_laws(n))}, n, rng(seed))
    active = drawn(support, 20_000, seed)
    assert off_by(active, support.rates) < Z


def test_a_frequent_feature_among_rare_ones_keeps_its_rate() -> None:
    """The sparse way to draw cells where hits and cells differ; hits alone would give 1 - exp(-0.9) = 0.59."""
    for often in (0.9, 1.0):
        support = Support({"law": "independent", "rates": [often] + [0.002] * 60}, 61, rng(0))
        assert off_by(drawn(support, 20_000, 0), support.rates) < Z


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_independent_features_are_independent(rate: float) -> None:
    active = drawn(Support({"law": "independent", "rates": rate}, 5, rng(0)), 40_000, 1)
    pairs = torch.stack([active[:, i] & active[:, j] for i, j in itertools.combinations(range(5), 2)], dim=1)
    assert off_by(pairs, torch.full((10,), rate**2, dtype=torch.float64)) < Z
    # neighbouring rows, too
    assert off_by(active[1:] & active[:-1], torch.full((5,), rate**2, dtype=torch.float64)) < Z


def test_zipf_rates_are_the_stated_power_law() -> None:
    listed = {"law": "zipf", "max": 0.4, "exponent": 0.5, "order": "listed"}
    rates = Support({"law": "independent", "rates": listed}, 50, rng(0)).rates
    assert rates.tolist() == pytest.approx([0.4 * k**-0.5 for k in range(1, 51)])
    mapped = Support({"law": "independent", "rates": {**listed, "min": 5e-4}}, 50, rng(0)).rates
    assert float(mapped[0]) == pytest.approx(0.4) and float(mapped[-1]) == pytest.approx(5e-4)
    slope = np.polyfit(rates.numpy(), mapped.numpy(), 1, full=True)
    assert slope[1][0] < 1e-20  # linear in the power law
    dealt = Support({"law": "independent", "rates": {**listed, "order": "random"}}, 50, rng(0)).rates
    assert sorted(dealt.tolist(), reverse=True) == pytest.approx(rates.tolist()) and dealt.tolist() != rates.tolist()


@settings(deadline=None, max_examples=12)
@given(st.floats(0.02, 0.6), st.floats(0.1, 0.95), st.sampled_from(["random", "blocks"]), SEEDS)
def test_cofiring_keeps_rates_and_has_the_copulas_pair_probabilities(
    rate: float, strength: float, kind: str, seed: int
) -> None:
    n = 6
    cofiring = {"rank": 2, "strength": strength, "kind": kind}
    support = Support({"law": "independent", "rates": rate, "cofiring": cofiring}, n, rng(seed))
    active = drawn(support, 20_000, seed)
    assert off_by(active, support.rates) < Z
    correlation = (support._loadings @ support._loadings.T).double()
    pairs = list(itertools.combinations(range(n), 2))
    threshold = stats.norm.ppf(rate)
    expected = [
        stats.multivariate_normal.cdf(
            [threshold] * 2, cov=[[1, float(correlation[i, j])], [float(correlation[i, j]), 1]]
        )
        for i, j in pairs
    ]
    both = torch.stack([active[:, i] & active[:, j] for i, j in pairs], dim=1)
    assert off_by(both, torch.tensor(expected, dtype=torch.float64)) < Z
    if kind == "blocks" and strength > 0.8 and rate > 0.05:
        assert off_by(both, torch.full((len(pairs),), rate**2, dtype=torch.float64)) > Z  # independence is refuted


def test_blocks_fire_together_and_apart_from_others() -> None:
    cofiring = {"rank": 3, "strength": 0.7, "kind": "blocks"}
    loadings = Support({"law": "independent", "rates": 0.1, "cofiring": cofiring}, 9, rng(0))._loadings
    expected = torch.block_diag(*[torch.full((3, 3), 0.49)] * 3)
    torch.testing.assert_close(loadings @ loadings.T, expected)


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], bool]:
    """Parents in a random labelling, and whether siblings exclude."""
    n = draw(st.integers(2, 12))
    above = [-1] + [draw(st.integers(-1, i - 1)) for i in range(1, n)]
    label = draw(st.permutations(range(n)))
    parents = [-1] * n
    for i, parent in enumerate(above):
        parents[label[i]] = -1 if parent < 0 else label[parent]
    return parents, draw(st.booleans())


@settings(deadline=None, max_examples=40)
@given(forests(), st.floats(0.05, 1.0), SEEDS)
def test_children_fire_only_with_their_parent_and_at_the_stated_rates(
    forest: tuple[list[int], bool], child_rate: float, seed: int
) -> None:
    parents, exclusive = forest
    widest = max(parents.count(i) for i in range(len(parents)))
    child_rate = child_rate / max(1, widest) if exclusive else child_rate
    hierarchy = {"parents": parents, "child_rate": child_rate, "exclusive": exclusive}
    support = Support({"law": "independent", "rates": 0.4, "hierarchy": hierarchy}, len(parents), rng(0))
    active = drawn(support, 8000, seed)
    for i, parent in enumerate(parents):
        if parent >= 0:
            assert not bool((active[:, i] & ~active[:, parent]).any())
    if exclusive:
        for parent in set(parents) - {-1}:
            siblings = [i for i, p in enumerate(parents) if p == parent]
            assert int(active[:, siblings].sum(dim=1).max()) <= 1
    ancestors = [sum(1 for _ in line_of(parents, i)) for i in range(len(parents))]
    expected = torch.tensor([0.4 * child_rate**k for k in ancestors], dtype=torch.float64)
    torch.testing.assert_close(support.rates, expected)
    assert support.level.tolist() == ancestors
    assert off_by(active, expected) < Z


def line_of(parents: list[int], i: int) -> Any:
    while parents[i] >= 0:
        i = parents[i]
        yield i


def test_without_exclusion_siblings_do_fire_together() -> None:
    hierarchy = {"parents": [-1, 0, 0], "child_rate": 0.5}
    active = drawn(Support({"law": "exact", "active": 1, "hierarchy": hierarchy}, 3, rng(0)), 2000, 0)
    assert bool(active[:, 0].all()) and int(active[:, 1:].sum(dim=1).max()) == 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_winning_rates_are_those_of_enumeration(q: list[float]) -> None:
    n = len(q)
    expected = np.zeros(n)
    for on in itertools.product([0, 1], repeat=n):
        chance = math.prod(qi if o else 1 - qi for qi, o in zip(q, on, strict=True))
        expected += [chance * o / max(1, sum(on)) for o in on]
    parent = torch.tensor([n] * n + [-1])  # one more node is the parent
    rates = winning_rates(torch.tensor([*q, 0.5], dtype=torch.float64), parent)
    assert rates[:n].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert float(rates[n]) == 0.5


def test_gated_children_in_a_forest() -> None:
    """No child_rate: a child's own rate, times its parent's, times its chance against its siblings."""
    hierarchy = {"roots": 2, "branching": 3, "depth": 2, "exclusive": True}
    rates = {"law": "zipf", "max": 0.6, "exponent": 0.3, "order": "listed"}
    support = Support({"law": "independent", "rates": rates, "hierarchy": hierarchy}, 30, rng(0))
    assert support.parent[:8].tolist() == [-1, -1, 0, 0, 0, 1, 1, 1] and support.parent[8:11].tolist() == [2, 2, 2]
    assert support.parent[26:].tolist() == [-1] * 4 and support.depth == 2
    own = 0.6 * torch.arange(1, 31, dtype=torch.float64) ** -0.3
    won = winning_rates(own, support.parent)
    assert float(support.rates[8]) == pytest.approx(float(own[0] * won[2] * won[8]))
    assert off_by(drawn(support, 20_000, 3), support.rates) < Z


@settings(deadline=None, max_examples=15)
@given(st.floats(0.02, 0.33), SEEDS)
def test_excluding_sets_of_roots(rate: float, seed: int) -> None:
    spec = {"law": "independent", "rates": rate, "exclusive": [[4, 0, 2], [1, 5]]}
    support = Support(spec, 7, rng(0))
    active = drawn(support, 10_000, seed)
    assert int(active[:, [0, 2, 4]].sum(dim=1).max()) <= 1 and int(active[:, [1, 5]].sum(dim=1).max()) <= 1
    assert off_by(active, support.rates) < Z and support.rates.tolist() == pytest.approx([rate] * 7)


def test_every_root_may_belong_to_a_set() -> None:
    support = Support({"law": "independent", "rates": 0.5, "exclusive": [[0, 1]]}, 2, rng(0))
    assert bool((drawn(support, 500, 0).sum(dim=1) == 1).all())


def test_specs_round_trip() -> None:
    spec = {
        "law": "independent",
        "rates": {"law": "zipf", "max": 0.4},
        "hierarchy": {"roots": 2, "branching": 2, "depth": 1, "child_rate": 0.5},
        "cofiring": {"rank": 2, "strength": 0.5},
    }
    first = Support(spec, 12, rng(0))
    again = Support(first.spec(), 12, rng(0))
    assert again.spec() == first.spec() and torch.equal(drawn(first, 200, 1), drawn(again, 200, 1))


INDEPENDENT = {"law": "independent", "rates": 0.1}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"law": "exact", "active": 6}, "support.active is 6, but there are only 5 features"),
        ({"law": "exact", "active": 0}, "expected an integer >= 1"),
        ({"law": "exact"}, "support lacks 'active'"),
        ({"law": "exakt", "active": 1}, "did you mean 'exact'"),
        ({"law": "exact", "active": 1, "rates": 0.1}, "unknown key in support: 'rates'"),
        ([], r"support is \[\]; expected a JSON object"),
        ({"law": "independent", "rates": 1.5}, "rate is 1.5; expected a number > 0 and <= 1"),
        ({"law": "independent", "rates": [0.1, 0.2]}, "has 2 numbers, but the world has 5 features"),
        ({"law": "independent", "rates": [0.1, 0.2, 0.1, 0.1, 0]}, r"support.rates\[4\] is 0; expected a rate"),
        ({"law": "independent", "rates": {"law": "zipf", "max": 0.1, "min": 0.2}}, "min is 0.2"),
        ({**INDEPENDENT, "cofiring": {"rank": 2, "strength": 1}}, "strength is 1; expected"),
        ({**INDEPENDENT, "cofiring": {"rank": 6, "strength": 0.5, "kind": "blocks"}}, "more blocks than the 5"),
        ({**INDEPENDENT, "exclusive": [[0, 9]]}, "exclusive holds 9"),
        ({**INDEPENDENT, "exclusive": [[0, 1], [1, 2]]}, "names feature 1 twice"),
        ({**INDEPENDENT, "exclusive": 3}, "expected a list of lists"),
        ({"law": "independent", "rates": 0.6, "exclusive": [[0, 1]]}, "rates add up to 1.2"),
        (
            {**INDEPENDENT, "exclusive": [[0, 1]], "cofiring": {"rank": 1, "strength": 0.5}},
            "both cofiring and exclusive",
        ),
        ({**INDEPENDENT, "hierarchy": {"parents": [-1, 0]}}, "expected a list of 5"),
        ({**INDEPENDENT, "hierarchy": {"parents": [-1, 0, 7, 0, 0]}}, r"parents\[2\] is 7"),
        ({**INDEPENDENT, "hierarchy": {"parents": [-1, 2, 1, 0, 0]}}, "cycle through feature 1"),
        ({**INDEPENDENT, "hierarchy": {"roots": 2, "branching": 2, "depth": 1}}, r"needs 6 features \(2 \+ 4\)"),
        ({"law": "exact", "active": 1, "hierarchy": {"parents": [-1, 0, 0, 0, 0]}}, "needs child_rate"),
        (
            {"law": "exact", "active": 2, "hierarchy": {"parents": [-1, 0, 0, 0, 0], "child_rate": 0.1}},
            "only 1 features",
        ),
        (
            {**INDEPENDENT, "hierarchy": {"parents": [-1, 0, 0, 0, -1], "child_rate": 0.4, "exclusive": True}},
            r"features \[1, 2, 3\] exclude each other but their rates add up to 1.2",
        ),
        (
            {**INDEPENDENT, "exclusive": [[1]], "hierarchy": {"parents": [-1, 0, 0, 0, 0]}},
            "feature 1, which has a parent",
        ),
    ],
)
def test_impossible_supports_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Support(spec, 5, rng(0))
