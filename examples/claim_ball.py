"""A claim of one's own: "I think the distortion floor (A3) also holds inside the ball, not only on the sphere."

    sasa-lab verify --plugin examples/claim_ball.py --claim A3-ball --details

The check gets the bound as an argument, tries it on dictionaries fitted to the law, and returns an Outcome. The lab
moves the bound just past the slack that was found, and runs the twins named under `dropped`: all must be refuted, or
the check has no power. Here the twin is the ellipsoid, where the floor does not hold.
"""

import numpy as np

from proofs_checks import Bench, Claim, Outcome, Truth, add, bounded
from sasa_theory import bounds
from sasa_theory.geometry import sphere
from sasa_theory.solvers import klines

N_ATOMS, D = 12, 3


def rows(n: int, rng: np.random.Generator, axes: tuple) -> np.ndarray:
    """n points (rows) uniform in the ellipsoid with these half-axes."""
    return sphere(n, D, rng) * rng.random((n, 1)) ** (1 / D) * axes


def check(floor, bench: Bench, axes: tuple = (1, 1, 1)) -> Outcome:
    """The best of the fitted dictionaries, judged on fresh points, against the floor times E||h||^2."""
    rng = bench.rng("ball")
    lines = klines.fit(rows(20_000, rng, axes), N_ATOMS, rng, centre=False)
    fresh = rows(bench.pick(50_000, 500_000), rng, axes)
    _, codes = lines.encode(fresh)
    energy = np.square(fresh).sum(1)
    left = energy - np.square(codes)
    error = 3.1 * left.std() / np.sqrt(len(left))
    return bounded(floor(N_ATOMS, 1, D) * energy.mean(), left.mean(), error=error, assumptions=("uniform in the ball",))


add(
    Claim(
        id="A3-ball",
        statement="The distortion floor holds for points uniform in the ball, times their mean squared norm.",
        formula="E dist^2 >= Dist(N, 1, d) E ||h||^2",
        assumptions=("uniform in the ball: the radius is independent of the direction",),
        source="our own",
        truths=(
            Truth(
                "K-lines dictionaries stay above the floor",
                bounds.distortion_floor,
                check,
                dropped={"an ellipsoid": lambda bench: check(bounds.distortion_floor, bench, (1, 0.3, 0.3))},
            ),
        ),
    )
)
