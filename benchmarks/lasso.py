"""LASSO coding: `sasa_theory.solvers.lasso` against scikit-learn, celer and skglm, every sample certified.

    python -m benchmarks.lasso                # needs the extra `bench`

Unit atoms and samples are drawn uniformly; each sample is scaled so that its lam_max is 1 (which changes nothing but
the scale of its codes), so that one penalty fits all. A peer's tolerance is tightened by tens until every sample's
relative duality gap, by one function for all, is at most 1e-6; a peer that does not get there is left out, and said
so. Peers work sample by sample and are timed on fewer of them. Both sides run with all threads and with one.
"""

import argparse
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from threadpoolctl import threadpool_limits

from benchmarks.harness import RESULTS, Contender, race, save
from sasa_theory.geometry import sphere
from sasa_theory.solvers import lasso

#: D, N, lam / lam_max
SIZES = ((16, 256, 0.1), (32, 512, 0.05), (64, 1024, 0.1), (64, 1024, 0.02), (64, 4096, 0.1))
GOAL = 1e-6
OURS = "sasa-lab"
Coder = Callable[[ndarray, ndarray, float, float], ndarray]


def gaps(atoms: ndarray, x: ndarray, codes: ndarray, lam: float) -> ndarray:
    """Relative duality gap of every sample from its codes alone: the residual, scaled until it is dual feasible."""
    nu = x - codes @ atoms
    top = np.abs(nu @ atoms.T).max(1)
    left, cross = np.square(nu).sum(1), (nu * x).sum(1)
    t = np.clip(cross / left, 0, lam / top)
    primal = left / 2 + lam * np.abs(codes).sum(1)
    return (primal - (t * cross - t**2 * left / 2)) / (np.square(x).sum(1) / 2)


def sklearn_lasso(atoms: ndarray, x: ndarray, lam: float, tol: float) -> ndarray:
    """Lasso, one sample at a time, with the Gram matrix given."""
    from sklearn.linear_model import Lasso

    gram = atoms @ atoms.T
    model = Lasso(lam / x.shape[1], fit_intercept=False, precompute=gram, tol=tol, max_iter=100_000)
    columns = np.asfortranarray(atoms.T)
    return np.stack([model.fit(columns, sample).coef_ for sample in x])


def sparse_encode(algorithm: str, atoms: ndarray, x: ndarray, lam: float, tol: float) -> ndarray:
    """scikit-learn's sparse coder, which takes all samples at once; it has no tolerance to tighten."""
    from sklearn.decomposition import sparse_encode as encode

    return encode(x, atoms, algorithm=algorithm, alpha=lam, max_iter=100_000, check_input=False)


def celer_lasso(atoms: ndarray, x: ndarray, lam: float, tol: float) -> ndarray:
    """celer, one sample at a time."""
    from celer import Lasso

    model = Lasso(lam / x.shape[1], fit_intercept=False, tol=tol, max_iter=1000)
    columns = np.asfortranarray(atoms.T)
    return np.stack([model.fit(columns, sample).coef_ for sample in x])


def skglm_lasso(atoms: ndarray, x: ndarray, lam: float, tol: float) -> ndarray:
    """skglm, one sample at a time."""
    from skglm import Lasso

    model = Lasso(lam / x.shape[1], fit_intercept=False, tol=tol, max_iter=1000)
    columns = np.asfortranarray(atoms.T)
    return np.stack([model.fit(columns, sample).coef_ for sample in x])


PEERS: dict[str, Coder] = {
    "scikit-learn Lasso": sklearn_lasso,
    "scikit-learn sparse_encode cd": partial(sparse_encode, "lasso_cd"),
    "scikit-learn sparse_encode lars": partial(sparse_encode, "lasso_lars"),
    "celer": celer_lasso,
    "skglm": skglm_lasso,
}


def certify(coder: Coder, atoms: ndarray, x: ndarray, lam: float) -> tuple[float, float]:
    """The loosest tolerance with which every sample certifies, and the largest gap then; inf if none does."""
    worst = np.inf
    for tol in 10.0 ** -np.arange(2, 3 if isinstance(coder, partial) else 13):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            worst = float(gaps(atoms, x, coder(atoms, x, lam, tol), lam).max())
        if worst <= GOAL:
            return float(tol), worst
    return np.inf, worst


def problem(d: int, n_atoms: int, samples: int, seed: int = 0) -> tuple[ndarray, ndarray]:
    """Unit atoms, and samples scaled to lam_max = 1."""
    rng = np.random.default_rng(seed)
    atoms, x = sphere(n_atoms, d, rng), sphere(samples, d, rng)
    return atoms, x / lasso.lam_max(atoms, x)[:, None]


def compare(d: int, n_atoms: int, lam: float, samples: int, fewer: int, rounds: int, threads: int) -> dict[str, Any]:
    """One size with a number of threads on both sides: tolerances, gaps, milliseconds a sample, ratios."""
    atoms, x = problem(d, n_atoms, samples)
    few = x[:fewer]
    torch.set_num_threads(threads)
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {OURS: {"gap": float(gaps(atoms, x, lasso.solve(atoms, x, lam).codes, lam).max()), "samples": samples}}
        sides = [Contender(OURS, lambda: lasso.solve(atoms, x, lam), samples)]
        for name, coder in PEERS.items():
            tol, gap = certify(coder, atoms, few, lam)
            found[name] = {"gap": gap, "tolerance": tol, "samples": fewer}
            if np.isfinite(tol):
                sides.append(Contender(name, partial(coder, atoms, few, lam, tol), fewer))
        times = race(sides, rounds, f"D={d} N={n_atoms} lam={lam} threads={threads}")
    rows = {
        name: {**entry, **({"ms_per_sample": _ms(times[name].to_json())} if name in times else {"certified": False})}
        for name, entry in found.items()
    }
    peers = {name: timing.median for name, timing in times.items() if name != OURS}
    fastest = min(peers, key=lambda name: peers[name])
    return {
        "D": d,
        "N": n_atoms,
        "lam": lam,
        "threads": threads,
        "rows": rows,
        "fastest_peer": fastest,
        "ratio": peers[fastest] / times[OURS].median,
    }


def _ms(timing: dict[str, Any]) -> dict[str, Any]:
    return {k: [1e3 * t for t in v] if isinstance(v, list) else 1e3 * v for k, v in timing.items()}


def run(
    sizes: Iterable[int] = range(len(SIZES)),
    samples: int = 10_000,
    peer_samples: int = 10,
    rounds: int = 3,
    threads: Iterable[int] = (),
    out: Path = RESULTS,
) -> Path:
    """Run sizes by their number, with 1 thread and all of them unless told otherwise; returns OUT/lasso.json."""
    runs: list[dict[str, Any]] = []
    for count in sorted(set(threads) or {1, torch.get_num_threads()}):
        for size in sizes:
            runs.append(compare(*SIZES[size], samples, peer_samples, rounds, count))
            counts = sorted({run["threads"] for run in runs})
            means = {
                count: float(np.exp(np.mean([np.log(run["ratio"]) for run in runs if run["threads"] == count])))
                for count in counts
            }
            # after every size, so that a stopped run leaves what it measured
            save("lasso", {"goal": GOAL, "runs": runs, "geometric_mean_ratio": means}, out)
    return out / "lasso.json"


def main() -> None:
    """Run all sizes and write results/lasso.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, help="samples our solver codes")
    parser.add_argument("--peer-samples", type=int, default=10, help="how many of them the peers code")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[])
    parser.add_argument("--size", type=int, nargs="+", choices=range(len(SIZES)), default=list(range(len(SIZES))))
    parser.add_argument("--out", default=str(RESULTS))
    options = parser.parse_args()
    run(options.size, options.samples, options.peer_samples, options.rounds, options.threads, Path(options.out))


if __name__ == "__main__":
    main()
