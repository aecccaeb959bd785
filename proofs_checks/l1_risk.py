"""B1 to B3: what an l1 penalty per token rewards.

psi_D(h), the best l1 cost of a token, has a dual: a distance to the polytope lam P* that the atoms cut out (B1). More
atoms cut away more and psi falls (B2), down to the cost of one group when they fill the sphere (B3). References come
from enumeration and least-distance projections, not from the solver. How fast psi falls is B4, in `l1_tiling`.
"""

import numpy as np
from scipy import optimize

from proofs_checks.core import Bench, Claim, Formula, Outcome, Truth, Value, add, bounded, compare, scaled
from proofs_checks.l1_measures import dense_risks, exact_codes, exact_psi, new_atoms, problems, project
from sasa_theory import bounds, objectives
from sasa_theory.geometry import sphere
from sasa_theory.solvers import lasso

#: relative rounding of exact cases
EXACT = 1e-9

# B1


def _dual_at_projection(formula: Formula, bench: Bench) -> Outcome:
    ours, reference = [], []
    for atoms, x, lam, signed in problems(bench.rng("B1"), bench.pick(1, 4)):
        ours.append(formula(x, project(atoms, x, lam, signed)))
        reference.append(exact_psi(atoms, x, lam, signed))
    # a psi of 0 (lam = 0, x in the span) is only as good as rounding
    return compare(
        np.concatenate(ours),
        np.concatenate(reference),
        EXACT,
        EXACT,
        "dual at the projection against psi by enumeration",
    )


def _cost_of_best_codes(formula: Formula, bench: Bench) -> Outcome:
    ours, reference = [], []
    for atoms, x, lam, signed in problems(bench.rng("B1"), bench.pick(1, 4)):
        u = project(atoms, x, lam, signed)
        ours.append(formula(atoms, x, exact_codes(atoms, x, lam, signed), lam))
        reference.append((np.square(x).sum(1) - np.square(x - u).sum(1)) / 2)
    return compare(
        np.concatenate(ours), np.concatenate(reference), EXACT, EXACT, "cost of the best codes against the distance"
    )


def _feasible_points(formula: Formula, bench: Bench, feasible: bool = True, one_sided: bool = False) -> Outcome:
    """Dual points of all qualities, from scaled random ones to the projection, against psi.

    Not `feasible`: the residuals are left unscaled. `one_sided`: the polytope of non-negative codes for signed psi.
    """
    rng = bench.rng("B1 points")
    ours, best = [], []
    for atoms, x, lam, signed in problems(bench.rng("B1"), bench.pick(1, 4)):
        if lam == 0 or (one_sided and not signed):
            continue
        psi = exact_psi(atoms, x, lam, signed)
        sides = signed and not one_sided
        for codes in (0.3 * rng.standard_normal((len(x), len(atoms))), exact_codes(atoms, x, lam, sides)):
            nu = x - codes @ atoms
            scores = nu @ atoms.T
            size = np.max(np.abs(scores) if sides else scores, axis=1)
            scale = np.minimum(1, lam / np.maximum(size, lam))[:, None] if feasible else 1.0
            ours.append(formula(x, nu * scale))
            best.append(psi)
    psi = np.concatenate(best)
    return bounded(np.concatenate(ours), psi, error=EXACT * (1 + psi), what="dual points", assumptions=("u feasible",))


def _solver(formula: Formula, bench: Bench) -> Outcome:
    """The LASSO solver's certificate on larger problems: its codes cost what its dual bound says, within the gap."""
    rng, rtol = bench.rng("B1 solver"), 1e-8
    ours, reference, allowed = [], [], []
    for d, n_atoms in ((8, 64), (16, 256)):
        atoms, x = sphere(n_atoms, d, rng), rng.standard_normal((bench.pick(50, 500), d))
        for signed in (True, False):
            found = lasso.solve(atoms, x, 0.2, signed=signed, rtol=rtol)
            ours.append(formula(atoms, x, found.codes, 0.2))
            reference.append(found.dual)
            allowed.append(2 * rtol * np.square(x).sum(1) / 2)
    return compare(
        np.concatenate(ours), np.concatenate(reference), 0, np.concatenate(allowed), "primal against dual of the solver"
    )


add(
    Claim(
        id="B1",
        statement="The best l1 cost of a token is half its squared norm less half its squared distance to lam P*, the "
        "polytope the atoms cut out.",
        formula="psi_D(h) = 1/2 ||h||^2 - 1/2 dist(h, lam P*)^2, P* = {u : |<d_j, u>| <= 1} (non-negative codes: "
        "<d_j, u> <= 1; lam = 0: lam P* = {u : D^T u = 0}, one-sided D^T u <= 0)",
        assumptions=("lam >= 0", "atoms of any length"),
        source="THEORY.md B1; LASSO duality",
        values=(
            Value(objectives.lasso_dual, _dual_at_projection),
            Value(objectives.lasso_cost, _cost_of_best_codes),
            Value(objectives.lasso_cost, _solver),
        ),
        truths=(
            Truth(
                "every feasible dual point bounds psi from below",
                objectives.lasso_dual,
                _feasible_points,
                dropped={
                    "u not feasible": lambda bench: _feasible_points(objectives.lasso_dual, bench, feasible=False),
                    "one-sided polytope for signed codes": lambda bench: _feasible_points(
                        objectives.lasso_dual, bench, one_sided=True
                    ),
                },
            ),
        ),
    )
)


# B2


def _more_atoms(formula: Formula, bench: Bench, exchanged: bool = False) -> Outcome:
    """Cost with one more atom against psi without it; `exchanged`: the new atom takes the place of an old one."""
    rng = bench.rng("B2")
    more, fewer = [], []
    for atoms, x, lam, signed in problems(bench.rng("B2"), bench.pick(1, 4)):
        if lam == 0:
            continue
        new = rng.standard_normal((1, x.shape[1]))
        after = np.concatenate([atoms[1:] if exchanged else atoms, new])
        more.append(formula(after, x, exact_codes(after, x, lam, signed), lam))
        fewer.append(exact_psi(atoms, x, lam, signed))
    psi = np.concatenate(fewer)
    return bounded(np.concatenate(more), psi, error=EXACT * (1 + psi), what="psi with an atom more against without")


def entry_threshold(lam: float) -> float:
    """What |<v, nu>| (non-negative codes: <v, nu>) must exceed for a new atom v to lower psi: lam (B2)."""
    return lam


def _entering(formula: Formula, bench: Bench, signs: bool = True) -> Outcome:
    """Is psi lowered exactly where the rule says? `signs` False: non-negative codes are judged by |<v, nu>|."""
    cases = new_atoms(bench.pick(1, 4), bench.seed)
    reach = [abs(c.reach) if c.signed or not signs else c.reach for c in cases]
    wrong = sum((r > formula(c.lam)) != c.lowered for r, c in zip(reach, cases, strict=True))
    return Outcome(
        margin=-wrong / len(cases) if wrong else 1.0,
        compared=f"{wrong} of {len(cases)} new atoms at .5, .98, 1.02 and 2 times the threshold against the rule",
        assumptions=("new atoms of any length",),
    )


add(
    Claim(
        id="B2",
        statement="More atoms never raise the best l1 cost, and a new atom lowers it exactly when it correlates with "
        "the residual by more than lam.",
        formula="psi_{D + v}(h) <= psi_D(h), with < iff |<v, nu>| > lam (non-negative codes: <v, nu> > lam), "
        "nu = h - D a",
        assumptions=("lam > 0", "a optimal"),
        source="THEORY.md B2; feasibility of nu for the larger dictionary",
        truths=(
            Truth(
                "another atom does not raise psi",
                objectives.lasso_cost,
                _more_atoms,
                dropped={
                    "an atom exchanged, not added": lambda bench: _more_atoms(
                        objectives.lasso_cost, bench, exchanged=True
                    )
                },
            ),
            Truth(
                "it lowers psi exactly above the threshold",
                entry_threshold,
                _entering,
                side=None,
                dropped={
                    "threshold 5 % higher": lambda bench: _entering(scaled(entry_threshold, 1.05), bench),
                    "threshold 5 % lower": lambda bench: _entering(scaled(entry_threshold, 0.95), bench),
                    "sign of <v, nu> ignored": lambda bench: _entering(entry_threshold, bench, signs=False),
                },
            ),
        ),
    )
)


# B3


def _dense_tilings(formula: Formula, bench: Bench) -> Outcome:
    """The risk of dense tilings in the plane and in space; their own excess is the tolerance, well under 5 %."""
    lam, radii = 0.3, (0.2, 0.6, 1.0, 3.0)
    seen = dense_risks(lam, radii, bench.pick(256, 1000), bench.pick(100, 500), bench.seed)
    ours = np.broadcast_to([formula(radius, lam) for radius in radii], np.shape(seen))
    return compare(ours, seen, 0.015, what="limit against the risk of dense tilings")


def _radial_minimum(formula: Formula, bench: Bench) -> Outcome:
    """The atom along h is there in the limit, and best: a scalar minimisation of its code."""
    ours, reference = [], []
    for lam in (0.1, 0.5, 2.0):
        for radius in (0.05, 0.5, 1.0, 2.0, 5.0):
            best = optimize.minimize_scalar(
                lambda a, radius=radius, lam=lam: (radius - a) ** 2 / 2 + lam * a,
                bounds=(0, radius),
                method="bounded",
                options={"xatol": 1e-12},
            )
            ours.append(formula(radius, lam))
            reference.append(min(best.fun, radius**2 / 2))
    return compare(ours, reference, 1e-8, what="limit against the best code of the atom along h")


def _below_every_dictionary(formula: Formula, bench: Bench, length: float = 1.0) -> Outcome:
    """Single tokens, some with an atom within a degree of them, against their limit."""
    rng, lam = bench.rng("B3 truth"), 0.3
    ours, best = [], []
    for d in (1, 2, 3, 5, 8):
        for signed in (True, False):
            x = sphere(40, d, rng) * rng.uniform(0.1, 3, (40, 1))
            near = x[:20] + 0.01 * rng.standard_normal((20, d)) * np.linalg.norm(x[:20], axis=1, keepdims=True)
            atoms = np.concatenate([sphere(20, d, rng), near / np.linalg.norm(near, axis=1, keepdims=True)])
            found = lasso.solve(length * atoms, x, lam, signed=signed, rtol=1e-10)
            ours.append(formula(np.linalg.norm(x, axis=1), lam))
            best.append(found.primal)
    psi = np.concatenate(best)
    return bounded(np.concatenate(ours), psi, error=EXACT * (1 + psi), what="limit", assumptions=("unit atoms",))


add(
    Claim(
        id="B3",
        statement="As unit atoms fill the sphere the best l1 cost falls to that of one group with an l2 penalty, and "
        "no dictionary goes below.",
        formula="psi_D(h) >= lam ||h|| - lam^2/2 for ||h|| >= lam (1/2 ||h||^2 below), reached in the limit",
        assumptions=("atoms of at most unit length", "any d, any number of atoms"),
        source="THEORY.md B3; dual point lam h / ||h||",
        values=(Value(bounds.tiled_limit, _dense_tilings), Value(bounds.tiled_limit, _radial_minimum)),
        truths=(
            Truth(
                "no dictionary of unit atoms costs less",
                bounds.tiled_limit,
                _below_every_dictionary,
                dropped={
                    "atoms of length 1.5": lambda bench: _below_every_dictionary(bounds.tiled_limit, bench, length=1.5)
                },
            ),
        ),
    )
)
