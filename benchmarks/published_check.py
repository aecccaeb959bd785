"""Is the restated step the published one? Loss, gradients and time of both on the same weights and rows.

    python -m benchmarks.published_check --sasa-path DIR        # a checkout of the published code; needs sae-lens

At the sizes of the main comparison, without dead units and with a fifth of them dead. The difference of the gradients
is relative to the published gradient's norm, parameter by parameter; times are medians of rounds in turn.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Bench, Setting, published, published_module, require, restated, rows
from benchmarks.harness import RESULTS, Contender, race, save
from benchmarks.published_sasa import PublishedSASA
from benchmarks.step import DEAD, MAIN


def compare(path: Path, size: Setting, rounds: int) -> dict[str, Any]:
    """Relative differences of loss and gradients, and the restated step's time over the published one's."""
    library, step_input = published_module(path), require("sae_lens.saes.sae").TrainStepInput
    bench = Bench(size, rows(size, "cpu"), sasa_path=path)
    ours = PublishedSASA(size.width, size.n_groups, size.rank, size.active)
    sizes = {"n_groups": size.n_groups, "group_rank": size.rank, "k_groups": size.active}
    theirs = library.TopKSASA(library.TopKSASAConfig(d_in=size.width, d_sae=size.columns, **sizes))
    dead = bench.dead(size.n_groups).repeat_interleave(size.rank)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
            getattr(theirs, name).copy_(parameter)
    given = step_input(
        sae_in=bench.rows[0], dead_neuron_mask=dead, coefficients={}, n_training_steps=0, is_logging_step=False
    )
    expected = theirs.training_forward_pass(given).loss
    expected.backward()
    ours.normalise()
    found = ours.loss(bench.rows[0], dead).total
    found.backward()
    differences = {}
    for name, parameter in ours.named_parameters():
        wanted = getattr(theirs, name).grad
        differences[name] = float((parameter.grad - wanted).norm() / wanted.norm())
    loss = abs(float(found.detach()) / float(expected.detach()) - 1)
    del ours, theirs, given, found, expected
    sides = [Contender("published", published(bench)), Contender("restated", restated(bench))]
    times = race(sides, rounds, "published", least=0.2)
    return {
        "setting": asdict(size),
        "threads": torch.get_num_threads(),
        "loss": loss,
        "gradients": differences,
        "seconds": {name: timing.to_json() for name, timing in times.items()},
        "time_ratio": times["restated"].median / times["published"].median,
    }


def main() -> None:
    """Compare and write results/published.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sasa-path", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sizes = (MAIN, replace(MAIN, dead=DEAD))
    save("published", {"runs": [compare(options.sasa_path, size, options.rounds) for size in sizes]}, options.out)


if __name__ == "__main__":
    main()
