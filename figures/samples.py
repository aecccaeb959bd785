"""Samples to a held-out target against d, for single directions and for subspaces (D2 to D4).

Left: no training in the way. K-lines (non-negative codes, 512 atoms) against the top-d eigenvectors of the second
moment; both are to explain 75 % of clean points of a unit sphere in V, noise .05 per coordinate of R^32. Middle:
trained dictionaries, each of one size for all d, on n fixed rows (`proofs_checks.samples_trained` has targets and
settings). Right: the error of a noisy slice against D2's law.

Both laws are fitted to every set of runs: the one ahead is drawn solid, with the 95 % interval of its slope, the other
dashed. Runs that never reached the target are drawn as triangles at the largest n tried and enter as censored. The
decision is D4's: a lead of 6 in AICc, never the eye. SASA and the eigenvectors are followed to larger d than the lines:
they are cheap, and on d = 2..7 whole numbers of samples alone blur which law they follow (with 8 runs at each d one
seed in six came out exponential, by 8.8).
"""

import math
from typing import Any

import numpy as np

from figures.registry import Context, Figure, figures, table
from proofs_checks.samples_growth import SUBSPACES, direct_study
from proofs_checks.samples_measures import sine_errors
from proofs_checks.samples_trained import EXCESS, MODELS, STUDY, TARGET, samples_to_target, train_settings
from sasa_theory.bounds import subspace_error
from sasa_theory.statistics import THRESHOLD, Decision, Line, growth_law
from synthetic.errors import DataError

LABELS = {
    "lines": "K-lines",
    "subspace": "top-d eigenvectors",
    "topk": "TopK, k = 1",
    "relu": "l1 (ReLU)",
    "sasa": "SASA, s = 1",
}
COLOURS = {"lines": "#d55e00", "subspace": "#0072b2", "topk": "#d55e00", "relu": "#cc79a7", "sasa": "#0072b2"}
PANELS = (("direct", "No training in the way"), ("trained", "Trained dictionaries"))
RUNS = {"quick": 5, "standard": 12, "paper": 24}
TRIALS = {"quick": 20, "standard": 200, "paper": 1000}
Laws = dict[str, dict[str, Any]]
SLICES, SIZES = (2, 8, 24), (250, 1000, 4000, 16_000)
AMBIENT, NOISE = 64, 0.3


def run(context: Context) -> dict[str, Any]:
    """Find the samples every method needs, fit both laws, and measure D2's error (module docstring)."""
    runs = [
        {"panel": "direct", "name": name, "d": int(d), "n": float(n), "censored": bool(off)}
        for name, columns in direct_study(context.seeds[0], RUNS[context.profile]).items()
        for d, n, off in zip(*columns, strict=True)
    ]
    searches = samples_to_target(
        context.profile, context.seeds, out=context.out, device=context.device, deadline=context.deadline
    )
    runs += [
        {"panel": "trained", "name": s.architecture, "d": s.d, "n": s.n, "censored": s.censored, "seed": s.seed}
        | {"seen": [list(pair) for pair in s.seen]}
        for s in searches
    ]
    rng = np.random.default_rng(context.seeds[0])
    laws: Laws = {name: _decide([r for r in runs if r["name"] == name], rng) for name in _names(runs)}
    errors = _errors(TRIALS[context.profile], rng)
    return {
        "numbers": {"runs": runs, "laws": laws, "errors": errors},
        "tables": [_law_table(laws), _run_table(runs), _error_table(errors)],
        "findings": [_finding(laws, runs)],
        "settings": {
            "direct": {"runs at each d": RUNS[context.profile], "ambient": 32, "noise": 0.05, "atoms": 512},
            "trained": STUDY[context.profile],
            "models": MODELS,
            "training": train_settings(STUDY[context.profile]["steps"], context.seeds[0]).as_dict(),
            "targets": {"unexplained": TARGET, "excess l1 risk": EXCESS},
            "threshold": THRESHOLD,
            "slice": {"ambient": AMBIENT, "noise": NOISE, "signal": 1.0, "trials": TRIALS[context.profile]},
        },
    }


def _names(runs: list[dict[str, Any]]) -> list[str]:
    """The methods measured, in order."""
    return list(dict.fromkeys(str(r["name"]) for r in runs))


def _decide(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Both laws of one method's runs, as JSON; without lines when too few runs reached the target."""
    d, n = (np.array([r[key] for r in runs], dtype=float) for key in ("d", "n"))
    off = np.array([r["censored"] for r in runs])
    short = {"runs": len(runs), "censored": int(off.sum()), "dims": [int(d.min()), int(d.max())]}
    try:
        found: Decision = growth_law(d, n, off, rng=rng)
    except DataError as error:
        return {**short, "decision": "undecided", "reason": str(error)}

    def line(law: Line) -> dict[str, float]:
        return {"intercept": law.intercept, "slope": law.slope, "low": law.low, "high": law.high, "scale": law.scale}

    return {
        **short,
        "decision": found.decision,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "lead": found.lead,
        "exponential": line(found.exponential),
        "polynomial": line(found.polynomial),
    }


def _verdict(law: dict[str, Any], digits: int = 0) -> str:
    """The decision and its lead in AICc."""
    if "lead" not in law:
        return str(law["decision"])
    joined = " (lead {:.{}f})" if law["decision"] == "undecided" else " by {:.{}f}"
    return str(law["decision"]) + joined.format(law["lead"], digits)


def _errors(trials: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Mean ||sin Theta||_F^2 with its standard error, beside D2's law, over n and d."""
    out = []
    for d in SLICES:
        for n in SIZES:
            got = sine_errors(n, AMBIENT, d, NOISE, 1.0, trials, rng)
            law = subspace_error(n, AMBIENT, d, NOISE)
            error = float(got.std(ddof=1)) / math.sqrt(trials)
            out.append({"d": d, "n": n, "measured": float(got.mean()), "error": error, "law": law})
    return out


def _law_table(laws: Laws) -> dict[str, Any]:
    rows = []
    for name, law in laws.items():
        lines = [law.get(kind) for kind in ("exponential", "polynomial")]
        rows.append(
            [
                LABELS[name],
                f"{law['dims'][0]} to {law['dims'][1]}",
                law["runs"],
                law["censored"],
                *(f"{v['slope']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" if v else None for v in lines),
                f"{law['difference']:+.1f} [{law['low']:+.1f}, {law['high']:+.1f}]" if "difference" in law else None,
                _verdict(law, 1),
            ]
        )
    columns = [
        "method",
        "d",
        "runs",
        "censored",
        "rate per dimension",
        "exponent",
        "AICc lead of exponential",
        "decision",
    ]
    note = (
        f"log n = a + rate d against log n = a + exponent log d; 95 % bootstrap intervals. Decided at a lead of "
        f"{THRESHOLD:g} in AICc over the other law and over no growth; then wrong in at most 5 % of planted data (D4)."
    )
    return table("Growth of the samples needed", columns, rows, note)


def _run_table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean of n at each d, with a > where a run was censored."""
    dims = sorted({r["d"] for r in runs})
    rows: list[list[Any]] = []
    for name in _names(runs):
        row: list[Any] = [LABELS[name]]
        for d in dims:
            here = [r for r in runs if r["name"] == name and r["d"] == d]
            mean = math.exp(np.mean([math.log(r["n"]) for r in here])) if here else None
            row.append(f"{'> ' if any(r['censored'] for r in here) else ''}{mean:.3g}" if mean else None)
        rows.append(row)
    note = "Geometric mean over runs; > where some never reached the target (they count with the largest n tried)."
    return table("Samples to the held-out target", ["method", *(f"d = {d}" for d in dims)], rows, note)


def _error_table(errors: list[dict[str, float]]) -> dict[str, Any]:
    rows = [
        [
            e["d"],
            e["n"],
            f"{e['measured']:.5f} ± {e['error']:.5f}",
            f"{e['law']:.5f}",
            f"{e['measured'] / e['law']:.3f}",
        ]
        for e in errors
    ]
    return table(
        "Error of a noisy slice",
        ["d", "n", "measured", "D2's law", "ratio"],
        rows,
        f"E||sin Theta||_F^2 at D = {AMBIENT}, sigma = {NOISE}, v = 1; ± one standard error. The law is "
        "the leading order: the ratio tends to 1 as n grows.",
    )


def _finding(laws: Laws, runs: list[dict[str, Any]]) -> dict[str, str]:
    expected = {name: "polynomial" if name in SUBSPACES else "exponential" for name in laws}
    trained = {name for name in laws if any(r["panel"] == "trained" and r["name"] == name for r in runs)}
    against = [name for name, law in laws.items() if law["decision"] not in (expected[name], "undecided")]
    open_ones = [name for name, law in laws.items() if law["decision"] == "undecided"]
    whole = {"topk", "relu", "sasa"} <= trained
    status = "refuted" if against else "undecided" if open_ones or not whole else "supported"
    said = []
    for name, law in laws.items():
        line = law.get("polynomial" if name in SUBSPACES else "exponential")
        growth = "exponent" if name in SUBSPACES else "rate"
        slope = f", {growth} {line['slope']:.2f} [{line['low']:.2f}, {line['high']:.2f}]" if line else ""
        said.append(f"{LABELS[name]} {_verdict(law)}{slope} (d = {law['dims'][0]}..{law['dims'][1]})")
    return {
        "sentence": "samples",
        "status": status,
        "text": f"samples to a fixed held-out target, decided at a lead of {THRESHOLD:g} in AICc: " + "; ".join(said),
    }


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Samples against d for both kinds of study, and the error of a slice against n."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    picture = Picture(figsize=(15, 5.6), layout="constrained")
    axes = picture.subplots(1, 3)
    for ax, (panel, title) in zip(axes, PANELS, strict=False):
        for name in _names([r for r in numbers["runs"] if r["panel"] == panel]):
            _draw_method(ax, name, [r for r in numbers["runs"] if r["name"] == name], numbers["laws"][name])
        ax.set(yscale="log", xlabel="dimension d of the feature", ylabel="samples to the held-out target", title=title)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        ax.grid(alpha=0.25)
        ax.legend(loc="upper right", fontsize=9, framealpha=0.9)
    _draw_errors(axes[2], numbers["errors"])
    return {"figure": picture}


def _draw_method(ax: Any, name: str, runs: list[dict[str, Any]], law: dict[str, Any]) -> None:
    colour = COLOURS[name]
    rng = np.random.default_rng(0)
    for off, marker in ((False, "o"), (True, "^")):
        here = [r for r in runs if r["censored"] == off]
        d = np.array([r["d"] for r in here]) + rng.uniform(-0.08, 0.08, len(here))
        ax.scatter(d, [r["n"] for r in here], s=34 if off else 20, marker=marker, alpha=0.55, color=colour, lw=0)
    text = f"{LABELS[name]}: {_verdict(law)}"
    if law["censored"]:
        text += f" ({law['censored']} of {law['runs']} censored, ▲)"
    if "difference" not in law:
        ax.plot([], [], "o", color=colour, label=text)
        return
    ahead = "exponential" if law["difference"] > 0 else "polynomial"
    d = np.linspace(law["dims"][0], law["dims"][1], 200)
    for kind, axis in (("exponential", d), ("polynomial", np.log(d))):
        line = law[kind]
        curve = np.exp(line["intercept"] + line["slope"] * axis)
        if kind != ahead:
            ax.plot(d, curve, color=colour, lw=1.1, ls="--")
            continue
        unit = r"$n \sim e^{{{:.2f} d}}$" if kind == "exponential" else r"$n \sim d^{{\,{:.2f}}}$"
        ax.plot(d, curve, color=colour, lw=2, label=f"{text}, {unit.format(line['slope'])}")
        mean = np.mean([r["d"] if kind == "exponential" else math.log(r["d"]) for r in runs])
        turned = [curve * np.exp((line[end] - line["slope"]) * (axis - mean)) for end in ("low", "high")]
        ax.fill_between(d, *turned, color=colour, alpha=0.15, lw=0)


def _draw_errors(ax: Any, errors: list[dict[str, float]]) -> None:
    shades = ("#009e73", "#e69f00", "#56b4e9")
    for d, colour in zip(SLICES, shades, strict=True):
        here = [e for e in errors if e["d"] == d]
        n = np.array([e["n"] for e in here])
        ax.plot(n, [e["law"] for e in here], color=colour, lw=1.5)
        ax.errorbar(
            n, [e["measured"] for e in here], [e["error"] for e in here], fmt="o", ms=5, color=colour, label=f"d = {d}"
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="samples n",
        ylabel=r"E $\|\sin\Theta\|_F^2$",
        title="Error of a noisy slice: measured, and D2's law (lines)",
    )
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9)


figures.register("samples")(
    Figure(
        name="samples",
        title="Samples to a target against the dimension of a feature",
        run=run,
        draw=draw,
        budget={"quick": 60.0, "standard": 20 * 60.0, "paper": 2 * 3600.0},
    )
)
