"""Picture of E3: learned ranks and shares found against the coefficient, from the result alone."""

from typing import Any

import numpy as np

COLOURS = {"map": "#33658a", "decoder": "#c8553d"}


def of_kind(trained: list[dict[str, Any]], kind: str, lam: float) -> list[dict[str, Any]]:
    """The runs of a coefficient; coefficient 0 is the same model under either penalty."""
    return [one for one in trained if one["coefficient"] == lam and (one["penalty"] == kind or lam == 0)]


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """Learned rank against the coefficient for every dimension, with C6's window; the share found below."""
    from matplotlib.figure import Figure as Picture

    numbers = result["numbers"]
    trained, dims = numbers["trained"], numbers["dims"]
    coefficients, kinds = sorted({one["coefficient"] for one in trained}), list(COLOURS)
    shown = [lam if lam > 0 else 0.3 for lam in coefficients]  # 0 has its place left of the logarithmic axis
    picture = Picture(figsize=(15, 10.5), layout="constrained")
    axes = picture.subplots(3, 4)
    for i, (d, ax) in enumerate(zip(dims, axes.flat, strict=False)):
        low, high = numbers["windows"][i]
        ax.axvspan(max(low, 0.2), high, color="#f2d58a", alpha=0.55, lw=0, label="window (C6), penalty map")
        ax.axhline(d, color="0.35", lw=1, ls=":")
        for kind in kinds:
            ranks = [[r for one in of_kind(trained, kind, lam) for r in one["ranks"][i]] for lam in coefficients]
            ends = ([np.quantile(r, q) for r in ranks] for q in (0.1, 0.9))
            ax.plot(shown, [np.mean(r) for r in ranks], "o-", color=COLOURS[kind], ms=4, label=f"penalty {kind}")
            ax.fill_between(shown, *ends, color=COLOURS[kind], alpha=0.15, lw=0)
        ax.set(ylim=(-0.3, numbers["rank"] + 0.3), title=f"d = {d}", ylabel="learned rank")
    for ax, (name, text) in zip(axes[2], _BELOW, strict=True):
        for kind in kinds:
            cells = [[one[name] for one in of_kind(trained, kind, lam)] for lam in coefficients]
            points = [(x, v) for x, values in zip(shown, cells, strict=True) for v in values if v is not None]
            means = [
                (x, np.mean(held))
                for x, c in zip(shown, cells, strict=True)
                if (held := [v for v in c if v is not None])
            ]
            ax.plot(*zip(*means, strict=True), "-", color=COLOURS[kind]) if means else None
            ax.plot(*zip(*points, strict=True), "o", color=COLOURS[kind], ms=4, alpha=0.6) if points else None
        ax.set(title=text, xlabel="coefficient, raw units")
    for ax in axes.flat:
        ax.set(xscale="log", xlim=(0.2, 150))
        ax.set_xticks(shown, [f"{lam:g}" for lam in coefficients])
        ax.minorticks_off()
        ax.grid(alpha=0.2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    picture.suptitle("Rank of the group matched to each feature (mean, 10 % to 90 %; dotted: true dimension)")
    return {"figure": picture}


_BELOW = (
    ("found", "share found"),
    ("rank_error", "mean |rank error|"),
    ("spearman", "Spearman of learned and true rank"),
    ("explained", "explained variance"),
)
