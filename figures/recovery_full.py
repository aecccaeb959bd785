"""Joint recovery at the published size, 256 features in R^768, 8 on, beside the project's first trial.

The reference has 1,200 steps of 1,024 rows, one seed, coefficient 0 and no revival, with K = 256 and 512 groups; its
learning rate is not recorded. Beside it stands the same training of ours ("as the reference"), and the recipe of
`recovery`: splits, revival, coefficient 10 of the penalty "map". 1,200 steps are few: a group is on for a few tens of
thousand rows.
"""

import dataclasses
from typing import Any

import numpy as np

from figures.rank_recovery_world import SIZES, make_job
from figures.registry import spread, table
from sasa_theory.training import Job

SIZE: dict[str, Any] = {**SIZES["paper"], "steps": 1200, "batch": 1024}
GROUPS = (256, 512)
#: share found and silent groups, by number of groups
REFERENCE = {256: (0.59, 83), 512: (0.63, 319)}


def full_job(groups: int, recipe: bool, coefficient: float, seed: int) -> Job:
    """The recipe at full size with `groups` groups, or its training without penalty, revival and splits."""
    job = make_job(SIZE, "map", coefficient if recipe else 0.0, seed)
    settings = {**job.settings, "n_groups": groups}
    if recipe:
        return Job(job.architecture, settings, job.training)
    return Job(job.architecture, {**settings, "aux_groups": 0}, dataclasses.replace(job.training, splits=0))


def full_table(cells: list[dict[str, Any]], found: float) -> dict[str, Any]:
    """Found and silent groups of each training, with the reference's where it trains alike."""
    rows = []
    for groups in GROUPS:
        for recipe in (False, True):
            held = [one for one in cells if one["groups"] == groups and one["recipe"] == recipe]
            share, silent = REFERENCE[groups]
            rows.append(
                [
                    groups,
                    "recipe" if recipe else "as the reference",
                    len(held),
                    None if recipe else f"{share:.2f}",
                    *(spread([one[name] for one in held], 2) for name in ("found", "capture", "rank_error")),
                    None if recipe else silent,
                    f"{np.mean([one['dead_share'] for one in held]) * groups:.0f}",
                ]
            )
    columns = [
        "groups",
        "training",
        "seeds",
        "reference found",
        f"found (capture >= {found})",
        "mean capture",
        "|rank error|",
        "reference silent groups",
        "silent groups",
    ]
    note = (
        f"256 features in R^768, 8 on, {SIZE['steps']:,} steps of {SIZE['batch']:,}. Reference: the project's first "
        "trial, one seed, coefficient 0, no revival; found there were captures near 1, the others were near 0."
    )
    return table("Full size", columns, rows, note)


def full_text(cells: list[dict[str, Any]]) -> str:
    """The shares found, for a finding."""
    parts = []
    for groups in dict.fromkeys(one["groups"] for one in cells):
        shares = [
            float(np.mean([one["found"] for one in cells if one["groups"] == groups and one["recipe"] == recipe]))
            for recipe in (True, False)
        ]
        parts.append(f"; published size, K = {groups}: {shares[0]:.0%} with the recipe, {shares[1]:.0%} without")
    return "".join(parts)
