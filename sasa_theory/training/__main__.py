"""Train one dictionary on one or several processes: `torchrun --nproc-per-node N -m sasa_theory.training config.json`.

The file says what `sasa-lab train` takes as options:

    {"world": SPEC or "store": DIR, "architecture": NAME, "model": {...}, "training": {...}, "out": DIR,
     "device": "cpu" or "cuda", "plugins": [FILE, ...]}

`out` becomes the checkpoint directory; a stopped run there goes on, with as many processes as before. Every process
reads a stream of its own, and training.batch_size is that of one process; the weights are those of one process on all
these batches. The log's losses are of the first one's rows. `python -m` alone runs one process.
"""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sasa_theory import parallel
from sasa_theory.files import read_json
from sasa_theory.models import build
from sasa_theory.training.settings import TrainSettings
from sasa_theory.training.trainer import STATE, Trainer
from synthetic import World
from synthetic.errors import LabError, UsageError, unknown
from synthetic.registry import load_plugin
from synthetic.source import Dataset

logger = logging.getLogger(__name__)
KEYS = ("world", "store", "architecture", "model", "training", "out", "device", "plugins")


def read_config(path: str | Path) -> dict[str, Any]:
    """The file's settings, every key known and none missing; raises UsageError otherwise."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds a {type(config).__name__}; expected an object with {', '.join(KEYS)}")
    for key in config:
        if key not in KEYS:
            raise unknown(f"key of {path}", key, KEYS)
    for key in ("architecture", "out"):
        if key not in config:
            raise UsageError(f"{path} lacks {key!r}; add it")
    if ("world" in config) == ("store" in config):
        raise UsageError(f"{path} needs exactly one of 'world' and 'store'")
    fields = [field.name for field in dataclasses.fields(TrainSettings)]
    for key in config.get("training", {}):
        if key not in fields:
            raise unknown("training setting", key, fields)
    return config


def train(config: dict[str, Any]) -> None:
    """Train what `read_config` returned, in this process's share."""
    for plugin in config.get("plugins", []):
        load_plugin(plugin)
    device = config.get("device", "cpu")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        settings = TrainSettings(**config.get("training", {}))
        data = _dataset(config)
        model = build(config["architecture"], width_in=data.width, **config.get("model", {}))
        # no two (seed, rank) pairs share a stream
        order = settings.seed * parallel.world_size() + parallel.rank()
        source = data.batches(settings.batch_size, device, stream=f"train:{order}")
        progress = None if parallel.is_first() else False
        trainer = Trainer(model, source, settings, out=config["out"], device=device, progress=progress)
        trainer.fit(resume=(Path(config["out"]) / STATE).exists())
        logger.info("trained %s on %d processes in %s", model.architecture, parallel.world_size(), config["out"])
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _dataset(config: dict[str, Any]) -> Dataset:
    if "world" in config:
        return World.from_spec(config["world"])
    from sasa_theory.activations import ActivationStore

    return ActivationStore(config["store"])


def main(arguments: list[str]) -> int:
    """Exit status: 0 trained, 1 failed or stopped, 2 wrong use."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if len(arguments) != 1:
            raise UsageError("usage: python -m sasa_theory.training config.json")
        train(read_config(arguments[0]))
    except LabError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
