"""What a long run will take, said before it begins: time, disk and memory, from some seconds of measuring."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sasa_theory.activations import LanguageModel, Texts
    from sasa_theory.training import Job
    from synthetic.source import Dataset


def of_store(
    model: "LanguageModel", hook: str, texts: "Texts", tokens: int, out: Path, *, dtype: str, workers: int
) -> str | None:
    """A line about a store of `tokens` rows of `model` at `hook` in `out`; None where it has them already.

    Time: the pace on the first 512 tokens of the text. Memory: the weights (each of several workers loads them
    again), and the shard in hand twice.
    """
    from sasa_theory.activations import ActivationStore
    from sasa_theory.activations.gather import measure_pace
    from sasa_theory.activations.layout import MANIFEST, ROW_BYTES, require_dtype
    from sasa_theory.activations.writer import SHARD_BYTES
    from sasa_theory.training.cost import memory_line, weight_bytes

    at_hand = len(ActivationStore(out, verify=False)) if (out / MANIFEST).is_file() else 0
    left = tokens - at_hand
    if left <= 0:
        return None
    seconds = left / measure_pace(model, hook, texts).run / workers
    weights = weight_bytes(model.model)
    host = weights * (1 + workers * (workers > 1)) + 2 * SHARD_BYTES
    disk = left * (require_dtype(dtype).itemsize * model.width + ROW_BYTES)
    memory = memory_line(host, weights if model.device.type == "cuda" else 0)
    return f"{left:,} tokens to run: {_about(seconds)}; disk: {disk / 1e9:.2f} GB; {memory}"


def of_training(data: "Dataset", job: "Job", device: str) -> str:
    """A line about training `job` on stored or live activations.

    Time: some steps on random rows, and the pace of a model that runs beside them. Memory: see `memory_of`.
    """
    from sasa_theory.activations import LiveActivations
    from sasa_theory.activations.gather import measure_pace
    from sasa_theory.models import build
    from sasa_theory.training.cost import memory_line, memory_of, step_and_row_seconds, weight_bytes

    model = build(job.architecture, width_in=data.width, **job.settings)
    steps, batch = job.training.steps, job.training.batch_size
    of_step, _ = step_and_row_seconds(job, data.width, device)
    block = weights = 0
    if isinstance(data, LiveActivations):
        of_step += batch / measure_pace(data.model, data.hook, data.texts).run
        block, weights = data.block * data.model.context * data.width, weight_bytes(data.model.model)
    trained = sum(p.numel() for p in model.parameters())
    memory = memory_line(*memory_of(trained, batch * model.n_units * model.rank, block, weights, device))
    return f"{steps:,} steps, {steps * batch:,} tokens: {_about(steps * of_step)}; {memory}"


def _about(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} hours" if seconds >= 3600 else f"about {max(seconds / 60, 0.1):.1f} minutes"
