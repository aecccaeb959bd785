"""Is the restated step the published one? Loss, gradients and time of both on the same weights and rows.

python -m benchmarks.published_check --sasa-path DIR        # a checkout of the published code; needs sae-lens
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Bench, Setting, published, published_module, require, restated, rows
from benchmarks.harness import RESULTS, Contender, race, save
from benchmarks.published_sasa import PublishedSASA

SIZE = Setting(768, 512, 6, 10, 1024, dead=0.2)


def compare(path: Path, size: Setting = SIZE, rounds: int = 5) -> dict[str, Any]:
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
    differences = {
        name: float((p.grad - getattr(theirs, name).grad).norm() / getattr(theirs, name).grad.norm())
        for name, p in ours.named_parameters()
    }
    sides = [Contender("published", published(bench)), Contender("restated", restated(bench))]
    times = race(sides, rounds, "published", least=0.2)
    return {
        "loss": abs(float(found.detach()) / float(expected.detach()) - 1),
        "gradients": differences,
        "seconds": {name: timing.to_json() for name, timing in times.items()},
        "time_ratio": times["restated"].median / times["published"].median,
    }


def main() -> None:
    """Compare and write results/published.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sasa-path", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    save("published", compare(options.sasa_path), options.out)


if __name__ == "__main__":
    main()
