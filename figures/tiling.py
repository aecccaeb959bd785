"""The tiling law (B4): how the excess l1 risk of a d-dimensional feature falls with the number of atoms, d = 2 to 6.

One feature, unit vectors uniform on the sphere of R^d, lam = 0.3. The excess is R(D) minus the tiled limit
lam - lam^2/2, which one group of d directions costs from the start (B3). In each panel, against the number N of atoms:

    the floor         B4's bound, for signed and for non-negative codes (the latter without a decoder bias)
    best found        the least excess among well-spread atoms and descents from the basis, from random and from
                      well-spread atoms; on held-out points with certified codes, in the plane by quadrature
    trained l1-SAEs   ReLU autoencoders with a decoder bias in R^16: excess of the best non-negative codes for their
                      frozen decoder and bias. Their own encoder does worse, which the table shows; the signed floor
                      binds them
    slope             N^{-2/(d-1)}

The table fits the exponent of the best found and of the floor itself over the same N: at these N the floor is not yet
quite at its asymptotic slope either.
"""

from typing import Any

import numpy as np
import torch

from figures.registry import Context, Figure, figures, table
from sasa_theory.bounds import tiled_limit, tiling_atoms, tiling_floor
from sasa_theory.geometry import sphere
from sasa_theory.solvers import tiling
from sasa_theory.statistics import power_law
from sasa_theory.training import Job, Run, TrainSettings, fit_all
from synthetic import World

LAM, WIDTH = 0.3, 16
LIMIT = float(tiled_limit(1.0, LAM))
DIMS = (2, 3, 4, 5, 6)
#: atoms per dimension of the feature
LOADS = {"quick": (2, 3, 4, 6, 8), "standard": (2, 4, 8, 16, 32), "paper": (2, 4, 8, 16, 32, 64)}
TRAINED_LOADS = {"quick": (), "standard": (4, 16), "paper": (4, 8, 16, 32)}
#: points descended on, held-out points, steps of each descent, steps of training
POINTS = {"quick": 800, "standard": 3000, "paper": 20_000}
HELD_OUT = {"quick": 2000, "standard": 10_000, "paper": 50_000}
DESCENT = {"quick": 8, "standard": 30, "paper": 100}
STEPS = {"quick": 0, "standard": 3000, "paper": 20_000}
SURE = 3.1
#: "the floor tells how many atoms it takes" means: dictionaries come this close to it
CLOSE = 3.0


def run(context: Context) -> dict[str, Any]:
    """Find dictionaries, train autoencoders, compare both with the floor (module docstring)."""
    profile = context.profile
    cells = [(d, load * d, signed) for d in DIMS for load in LOADS[profile] for signed in (True, False)]
    found = _found(cells, profile, context.seeds[0])
    saes, names = _trained(context)
    panels = []
    for d in DIMS:
        series = {}
        for signed in (True, False):
            rows = [row for (dim, _, s), row in zip(cells, found, strict=True) if (dim, s) == (d, signed)]
            series["signed" if signed else "non-negative"] = rows
        panels.append({"d": d, **series, "trained": [sae for sae in saes if sae["d"] == d]})
    exponents = [_exponent(panel, context.seeds[0]) for panel in panels]
    return {
        "numbers": {"lam": LAM, "limit": LIMIT, "panels": panels, "exponents": exponents},
        "tables": _tables(panels, exponents),
        "findings": [_finding(panels, exponents)],
        "settings": {
            "lam": LAM,
            "points": POINTS[profile],
            "held-out points": HELD_OUT[profile],
            "descent steps": DESCENT[profile],
            "training": _job(8, 0, profile).training.as_dict() if names else None,
            "runs": names,
        },
    }


def _found(cells: list[tuple[int, int, bool]], profile: str, seed: int) -> list[dict[str, Any]]:
    """Every cell's dictionaries, cells in parallel (each on one thread)."""
    from joblib import Parallel, cpu_count, delayed

    one = delayed(_best_found)
    with_largest_first = sorted(range(len(cells)), key=lambda i: -cells[i][1])
    tasks = (one(*cells[i], POINTS[profile], HELD_OUT[profile], DESCENT[profile], seed) for i in with_largest_first)
    rows = Parallel(n_jobs=min(cpu_count(), len(cells)), batch_size=1)(tasks)
    return [row for _, row in sorted(zip(with_largest_first, rows, strict=True), key=lambda pair: pair[0])]


def _best_found(
    d: int, n_atoms: int, signed: bool, points: int, held_out: int, steps: int, seed: int
) -> dict[str, Any]:
    """Excess of each candidate dictionary, its error, and the floor."""
    rng = np.random.default_rng([seed, d, n_atoms, signed])
    # with fewer than some forty points an atom, a descent fits the points and not the sphere
    train, test = sphere(max(points, 40 * n_atoms), d, rng), sphere(held_out, d, rng)
    excess: dict[str, tuple[float, float]] = {}
    for name, atoms in tiling.candidates(n_atoms, train, LAM, rng, signed, steps).items():
        if d == 2:
            seen = tiling.circle_risk(atoms, 1.0, LAM, signed)
            excess[name] = (seen.value - LIMIT, seen.error)
        else:
            excess[name] = tiling.excess_risk(atoms, test, LAM, signed)[:2]
    best = min(excess, key=lambda name: excess[name][0])
    return {
        "n_atoms": n_atoms,
        "floor": tiling_floor(n_atoms, d, 1.0, LAM, signed) - LIMIT,
        "best": excess[best][0],
        "error": excess[best][1],
        "best_name": best,
        "found": {name: value for name, (value, _) in excess.items()},
    }


def _job(n_atoms: int, seed: int, profile: str) -> Job:
    """One l1-SAE; training minimises twice the cost of part B, so its coefficient is 2 lam."""
    training = TrainSettings(
        steps=max(1, STEPS[profile]),
        batch_size=512,
        lr=5e-3,
        decay_fraction=0.5,
        initialise="data",
        dead_window=20_000,
        log_every=500,
        checkpoint_every=100_000,
        seed=seed,
    )
    return Job("relu", {"n_latents": n_atoms, "coefficient": 2 * LAM}, training)


def _trained(context: Context) -> tuple[list[dict[str, Any]], list[str]]:
    """Autoencoders trained on one sphere in R^16 each, and their run directories."""
    saes, names = [], []
    for d in DIMS:
        cells = [(load * d, seed) for load in TRAINED_LOADS[context.profile] for seed in context.seeds]
        if not cells:
            continue
        world = World.from_spec(
            {
                "width": WIDTH,
                "features": [{"manifold": "sphere", "dim": d}],
                "support": {"law": "exact", "active": 1},
            }
        )
        jobs = [_job(n_atoms, seed, context.profile) for n_atoms, seed in cells]
        runs = fit_all(world, jobs, out=context.out, device=context.device, deadline=context.deadline)
        x = next(world.batches(HELD_OUT[context.profile], stream="eval"))
        for (n_atoms, seed), trained in zip(cells, runs, strict=True):
            saes.append({"d": d, "n_atoms": n_atoms, "seed": seed, **_measured(trained, x)})
            names.append(trained.directory.name)
    return saes, names


@torch.no_grad()
def _measured(trained: Run, x: torch.Tensor) -> dict[str, float]:
    """Excess of the best codes for the frozen decoder and bias, and of the model's own codes."""
    model = trained.model
    codes = model.encode(x).dense().double().reshape(len(x), -1).numpy()
    atoms = model.blocks()[1].double().reshape(codes.shape[1], -1).numpy()
    rows = x.double().numpy()
    bias = model.state_dict()["b_dec"].double().numpy()
    own = np.square(rows - bias - codes @ atoms).sum(1) / 2 + LAM * (codes @ np.linalg.norm(atoms, axis=1))
    best = tiling.risk(atoms, rows - bias, LAM, signed=False)
    return {
        "best_codes": best.value - LIMIT,
        "error": best.error,
        "own_codes": float(own.mean()) - LIMIT,
        "bias": float(np.linalg.norm(bias)),
        "longest": float(np.linalg.norm(atoms, axis=1).max()),
    }


def _exponent(panel: dict[str, Any], seed: int) -> dict[str, float]:
    """Fitted exponents of excess against N: the best found with its interval, and the floor over the same N."""
    rows = panel["signed"]
    n_atoms = np.array([row["n_atoms"] for row in rows], float)
    line = power_law(n_atoms, np.array([row["best"] for row in rows]), rng=np.random.default_rng(seed))
    floor = power_law(n_atoms, np.array([row["floor"] for row in rows]))
    return {
        "d": panel["d"],
        "fitted": line.slope,
        "low": line.low,
        "high": line.high,
        "floor": floor.slope,
        "law": -2 / (panel["d"] - 1),
    }


def _tables(panels: list[dict[str, Any]], exponents: list[dict[str, float]]) -> list[dict[str, Any]]:
    share = 0.01
    slopes = table(
        "Exponent of the excess l1 risk against N",
        ["d", "best found, fitted", "95 % interval", "floor, same N", "-2/(d-1)", "atoms for 1 % excess (floor)"],
        [
            [
                e["d"],
                f"{e['fitted']:.3f}",
                f"{e['low']:.3f} to {e['high']:.3f}",
                f"{e['floor']:.3f}",
                f"{e['law']:.3f}",
                tiling_atoms(int(e["d"]), share * LIMIT, 1.0, LAM),
            ]
            for e in exponents
        ],
        "Signed codes. The interval is a bootstrap over the scatter around the line. The last column is the fewest "
        "atoms that could come within 1 % of the tiled limit.",
    )  # fmt: skip
    rows: list[list[Any]] = []
    for panel in panels:
        for kind in ("signed", "non-negative"):
            rows += [
                [panel["d"], row["n_atoms"], kind, f"{row['floor']:.3e}", f"{row['best']:.3e} ± {row['error']:.0e}",
                 f"{row['best'] / row['floor']:.2f}", row["best_name"]]
                for row in panel[kind]
            ]  # fmt: skip
    sizes = table(
        "Excess over the tiled limit: the floor and the best dictionary found",
        ["d", "N", "codes", "floor", "best found", "best / floor", "which"],
        rows,
        "Held-out points and one standard error; d = 2 by quadrature.",
    )
    trained = [sae for panel in panels for sae in panel["trained"]]
    if not trained:
        return [slopes, sizes]
    cells: dict[tuple[int, int], list[dict[str, float]]] = {}
    for sae in trained:
        cells.setdefault((sae["d"], sae["n_atoms"]), []).append(sae)
    own = table(
        "Trained l1-SAEs: excess with the best codes for the frozen decoder, and with their own",
        ["d", "N", "floor, signed", "floor, non-negative", "best codes", "own codes", "norm of the bias"],
        [
            [d, n, *(f"{tiling_floor(n, d, 1.0, LAM, signed) - LIMIT:.3e}" for signed in (True, False)),
             *(_spread([sae[key] for sae in seeds]) for key in ("best_codes", "own_codes", "bias"))]
            for (d, n), seeds in cells.items()
        ],
        "Mean ± standard deviation over seeds. The signed floor binds them; the non-negative one "
        "would, had they no bias.",
    )  # fmt: skip
    return [slopes, sizes, own]


def _spread(values: list[float]) -> str:
    return f"{values[0]:.2e}" if len(values) == 1 else f"{np.mean(values):.2e} ± {np.std(values, ddof=1):.0e}"


def _finding(panels: list[dict[str, Any]], exponents: list[dict[str, float]]) -> dict[str, str]:
    rows = [row for panel in panels for kind in ("signed", "non-negative") for row in panel[kind]]
    saes = [sae for panel in panels for sae in panel["trained"]]
    floors = [tiling_floor(sae["n_atoms"], sae["d"], 1.0, LAM) - LIMIT for sae in saes]
    broken = sum(row["best"] + SURE * row["error"] < row["floor"] for row in rows)
    broken += sum(sae["best_codes"] + SURE * sae["error"] < floor for sae, floor in zip(saes, floors, strict=True))
    over = [row["best"] / row["floor"] for row in rows]
    fits = ", ".join(f"{e['fitted']:.2f} ({e['law']:.2f})" for e in exponents)
    needed = "/".join(str(tiling_atoms(d, 0.01 * LIMIT, 1.0, LAM)) for d in DIMS)
    text = (
        f"rotation-invariant feature, d = 2 to 6: {broken} of {len(rows) + len(saes)} dictionaries below the floor, "
        f"the best found at {min(over):.2f} to {max(over):.2f} times it; exponent of the excess against N, fitted "
        f"(law): {fits}; 1 % above the tiled limit takes at least {needed} atoms"
    )
    if saes:
        ratios = [
            sae["best_codes"] / (tiling_floor(sae["n_atoms"], sae["d"], 1.0, LAM, signed=False) - LIMIT) for sae in saes
        ]
        text += (
            f"; the atoms of {len(saes)} trained l1-SAEs at {min(ratios):.2f} to {max(ratios):.2f} times the floor of "
            "non-negative codes"
        )
    status = "refuted" if broken else "supported" if max(over) <= CLOSE else "undecided"
    return {"sentence": "tiling", "status": status, "text": text}


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """One panel per d, log-log, and the legend in the place of a sixth."""
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

    numbers = result["numbers"]
    picture = Picture(figsize=(11, 6.8), layout="constrained")
    axes = picture.subplots(2, 3).ravel()
    blue, orange, green = "#0072b2", "#d55e00", "#009e73"
    for ax, panel, fit in zip(axes, numbers["panels"], numbers["exponents"], strict=False):
        d = panel["d"]
        for kind, colour, mark in (("signed", blue, "o"), ("non-negative", orange, "s")):
            n, floor, best = (np.array([row[key] for row in panel[kind]]) for key in ("n_atoms", "floor", "best"))
            ax.plot(n, floor, color=colour, lw=1.4, label=f"floor, {kind} codes")
            ax.plot(n, best, mark, color=colour, ms=5, mfc="white", label=f"best found, {kind} codes")
        if panel["trained"]:
            n, seen = (np.array([sae[key] for sae in panel["trained"]]) for key in ("n_atoms", "best_codes"))
            ax.plot(n, seen, "x", color=green, ms=5.5, mew=1.3, label="trained l1-SAEs, best codes")
        signed = panel["signed"]
        ax.fill_between(
            [row["n_atoms"] for row in signed], [row["floor"] for row in signed], 1e-9, color="0.5", alpha=0.12, lw=0
        )
        n = np.array([signed[0]["n_atoms"], signed[-1]["n_atoms"]], float)
        top = 1.7 * max(row["best"] for row in panel["non-negative"])
        ax.plot(n, top * (n / n[0]) ** fit["law"], "--", color="0.55", lw=1.1, label="slope $-2/(d-1)$")
        ax.set(xscale="log", yscale="log", xlabel="atoms $N$", ylim=(0.6 * signed[-1]["floor"], 2 * top))
        ax.set_title(
            f"$d = {d}$: slope {fit['fitted']:.2f}, floor's {fit['floor']:.2f}, law {fit['law']:.2f}", fontsize=10.5
        )
        ax.set_xticks([row["n_atoms"] for row in signed])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if d > 3 else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.25, lw=0.5)
    for ax in axes[::3]:
        ax.set_ylabel("excess risk over the tiled limit")
    axes[-1].set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, labels, loc="center left", frameon=False, fontsize=10.5)
    picture.suptitle(
        f"The l1 objective rewards tiling: excess risk of one feature against its atoms (lam = {numbers['lam']})"
    )
    return {"figure": picture}


figures.register("tiling")(
    Figure(
        name="tiling",
        title="B4: excess l1 risk against the number of atoms",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 20 * 60.0, "paper": 60 * 60.0},
    )
)
