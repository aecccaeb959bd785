"""The picture and the tables of figure `causal`, from its result alone."""

from typing import Any

import numpy as np

from figures.registry import table

SITE = {"word": "at the word", "onward": "at the word and all tokens after it"}
CELLS = ("class", "share_class", "right", "share_right", "rest", "restored_right", "share_shift", "moved")
PANELS = (
    ("share_class", "removed: fall of P(concept)"),
    ("share_right", "removed: fall of P(right answer)"),
    ("restored_right", "put into a neutral word: P(right answer)"),
    ("share_shift", "moved to another word: shift of the answer"),
)
COLOURS = {"contribution": "#33658a", "subspace": "#f26419"}


def label(entry: dict[str, Any], rank: int) -> str:
    """What was intervened on, in words."""
    name, units = entry["model"], entry["units"]
    if name == "sasa":
        return {
            "one": "SASA group",
            "runner-up": "SASA runner-up",
            "other": "another group, on there",
            "random": "random, same norm",
            "random/2": "random, half of it",
            "random/4": "random, a quarter",
            "all": "SASA, all groups",
        }[units]
    if units == "all":
        return f"{name}, all latents"
    return f"{name} latent" if units == "one" else f"{name}, best {rank}"


def tables(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model answers, and one row for every intervention."""
    prompts = [
        [p["concept"], p["template"], p["words"], p["answered"], p["likeliest"], p["class"], p["right"],
         ", ".join(f"{word} ({why})" for word, why in p["left_out"].items()) or None]
        for p in numbers["prompts"]
    ]  # fmt: skip
    shown = []
    for e in sorted(numbers["entries"], key=lambda e: (e["concept"] != "both", e["concept"])):
        if e["concept"] != "both" and e["model"] != "sasa":
            continue
        cells = [
            _value(e.get(key))
            for key in (
                "class",
                "share_class",
                "right",
                "share_right",
                "rest",
                "restored_right",
                "share_shift",
                "moved",
            )
        ]
        shown.append([e["concept"], label(e, numbers["rank"]), e["part"], e["site"], e.get("on"), *cells])
    answers = [
        table(
            "What the model answers, untouched",
            [
                "concept",
                "prompt",
                "words",
                "right among the concept's words",
                "right among all tokens",
                "P(any word of it)",
                "P(right answer)",
                "left out",
            ],
            prompts,
            f"{numbers['answered']} of {numbers['of']} prompts are answered (the right word is the likeliest of the "
            "concept's words); the rest of the figure is over these. " + "; ".join(numbers["missing"]),
        ),
    ]
    if not shown:
        return answers
    return [
        *answers,
        table(
            "Interventions",
            [
                "concept",
                "units",
                "part",
                "where",
                "share of words they are on at",
                "P(concept) after removal",
                "share of ceiling",
                "P(right) after removal",
                "share of ceiling (right)",
                "KL of the rest",
                "restored in a neutral word (right)",
                "moved: share of ceiling's shift",
                "moved: answers that follow",
            ],
            shown,
            f"Untouched: P(concept) {numbers['clean']['class']:.3f}, P(right) {numbers['clean']['right']:.3f}. "
            "Ceiling, a neutral word's whole state: "
            + "; ".join(
                f"{SITE[site]} P(concept) {c['neutral.class']:.3f}, P(right) {c['neutral.right']:.3f}, KL of the rest "
                f"{c['neutral.rest']:.2f} nats, and another weekday's or month's whole state makes "
                f"{c['move.moved']:.0%} of the answers follow"
                for site, c in numbers["ceiling"].items()
            )
            + ". 95 % bootstrap intervals over prompts.",
        ),
    ]


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """The main picture, shares of the ceiling at the word; "onward" the same there and after it; and "specific"."""
    numbers = result["numbers"]
    if not numbers["entries"]:
        return {"figure": _nothing(numbers)}
    return {
        "figure": _shares(numbers, "word"),
        "onward": _shares(numbers, "onward"),
        "specific": _specific(numbers),
    }


def _shares(numbers: dict[str, Any], site: str) -> Any:
    """Share of the ceiling removed, restored and moved, by every detector."""
    from matplotlib.figure import Figure as Picture

    rank = numbers["rank"]
    entries = [e for e in numbers["entries"] if e["concept"] == "both" and e["site"] == site]
    labels = list(dict.fromkeys(label(e, rank) for e in sorted(entries, key=_order)))
    picture = Picture(figsize=(14.5, 1.5 + 0.3 * len(labels)), layout="constrained")
    axes = picture.subplots(1, 4, sharey=True)
    for ax, (key, title) in zip(axes, PANELS, strict=True):
        for e in entries:
            if key not in e:
                continue
            y = labels.index(label(e, rank)) + (-0.17 if e["part"] == "contribution" else 0.17)
            low, high = np.clip(e[key]["interval"], -2, 3)
            ax.plot([low, high], [y, y], color=COLOURS[e["part"]], lw=1.6)
            ax.plot(float(np.clip(e[key]["value"], -2, 3)), y, "o", color=COLOURS[e["part"]], ms=4.5)
        ax.axvline(0, color="0.7", lw=0.8)
        ax.axvline(1, color="0.7", lw=0.8, ls="--")
        ax.set(xlim=(-0.35, 1.35), ylim=(len(labels) - 0.4, -0.6), xlabel="share of the ceiling (dashed)")
        ax.set_title(title, fontsize=9)
        ax.grid(axis="y", color="0.93", lw=0.8)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=8)
    for part, colour in COLOURS.items():
        axes[3].plot([], [], "o-", color=colour, ms=4.5, label=f"its {part}")
    axes[3].legend(fontsize=8, loc="lower right")
    picture.suptitle(
        f"What units hold {SITE[site]}, taken away, put into a neutral word, moved: {numbers['answered']} prompts "
        f'such as "{numbers["prompts"][0]["template"]}"; 95 % intervals over prompts',
        fontsize=10,
    )
    return picture


def _nothing(numbers: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(7, 1.5))
    picture.text(
        0.5, 0.5, f"The model answers {numbers['answered']} of {numbers['of']} prompts: nothing to change.", ha="center"
    )
    return picture


def _specific(numbers: dict[str, Any]) -> Any:
    """What a removal takes from the concept against how far it moves the rest of the distribution."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(12, 5), layout="constrained")
    axes = picture.subplots(1, 2)
    for ax, key, title in zip(axes, ("share_class", "share_right"), ("P(concept)", "P(right answer)"), strict=True):
        for part, colour in COLOURS.items():
            chosen = [e for e in numbers["entries"] if (e["concept"], e["site"], e["part"]) == ("both", "word", part)]
            noise = [e for e in chosen if e["units"].startswith("random")]
            curve = np.array([(0.0, 0.0), *((e["rest"]["value"], e[key]["value"]) for e in noise)])
            curve = curve[np.argsort(curve[:, 0])]
            ax.plot(*curve.T, "-", color=colour, lw=1.2, alpha=0.6, label=f"random vectors of the {part}'s norms")
            for e in chosen:
                if e in noise or e["units"] == "all":
                    continue
                x, y = e["rest"]["value"], e[key]["value"]
                sasa = e["model"] == "sasa" and e["units"] == "one"
                ax.plot(x, y, "*" if sasa else "o", color=colour, ms=13 if sasa else 5)
                ax.annotate(label(e, numbers["rank"]), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7)
        ax.axhline(0, color="0.7", lw=0.8)
        ax.set(xlabel="KL of the rest of the distribution, nats (lower better)", ylabel="share of the ceiling removed")
        ax.set_title(f"fall of {title} on removal at the word", fontsize=10)
    axes[0].legend(fontsize=8, loc="lower right")
    return picture


def _order(entry: dict[str, Any]) -> tuple[bool, bool]:
    """SASA first, its controls next, then the baselines in their order."""
    return entry["model"] != "sasa", entry["units"] not in ("one", "all")


def _value(entry: "dict[str, Any] | None") -> "str | None":
    if entry is None:
        return None
    low, high = entry["interval"]
    return f"{entry['value']:.3f} ({low:.3f} to {high:.3f})"
