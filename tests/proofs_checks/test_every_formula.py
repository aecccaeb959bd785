"""Moving any formula by 5 %, up or down, makes its value check fail; no public formula is without a check."""

import inspect

import pytest

from proofs_checks import Bench, claims, scaled
from sasa_theory import bounds, objectives

VALUES = [(claim.id, value) for claim in claims() for value in claim.values]


def public(module):
    """The functions a module offers, those it re-exports included."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = [getattr(module, name) for name in names]
    return [
        f for f in found if inspect.isfunction(f) and f.__module__.startswith(("sasa_theory.bounds", module.__name__))
    ]


@pytest.mark.parametrize("formula", [*public(bounds), *public(objectives)], ids=lambda f: f.__name__)
def test_every_public_formula_has_a_value_check(formula):
    assert formula in [value.formula for _, value in VALUES], f"no claim checks the value of {formula.__name__}"


@pytest.mark.parametrize(("name", "value"), VALUES, ids=[f"{name}-{value.formula.__name__}" for name, value in VALUES])
def test_a_formula_five_percent_off_fails(name, value):
    bench = Bench()
    assert value.check(value.formula, bench).state == "holds"
    for factor in (0.95, 1.05):
        assert value.check(scaled(value.formula, factor), bench).state == "refuted", f"times {factor} was accepted"
