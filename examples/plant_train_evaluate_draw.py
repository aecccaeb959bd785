"""Plant three manifolds, train SASA on them, evaluate it against the truth, draw what its groups own.

python examples/plant_train_evaluate_draw.py [OUT] [STEPS]
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from sasa_theory.evaluation import count_owners, evaluate
from sasa_theory.training import TrainSettings, fit
from synthetic import World

out = Path(sys.argv[1] if len(sys.argv) > 1 else "results/example")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000

world = World.from_spec("three-manifolds")
settings = {"n_groups": 64, "group_rank": 4, "active_groups": 1, "nuclear": 0.01}
training = TrainSettings(steps=steps, lr=3e-3, initialise="data")
model = fit(world, "sasa", settings, training, out=out).model

metrics = evaluate(model, world, 20_000)["metrics"]
print(f"explained variance {metrics['explained_variance']['explained_variance']['value']:.4f}")
print(f"groups that own a part of each manifold: {count_owners(model, world).owners}")

picture = Figure(figsize=(9, 3), layout="constrained")
for i, axes in enumerate(picture.subplots(1, 3)):
    points = world.points(i, 2000, 0)
    owner = model.encode(points.x).dense().norm(dim=-1).argmax(dim=1)
    axes.scatter(*points.coords[:, 0, :2].T, c=owner, s=3, cmap="tab20")
    axes.set_title(f"{world.features[i].name}: {len(owner.unique())} group(s) somewhere strongest")
picture.savefig(out / "manifolds.png", dpi=150)
