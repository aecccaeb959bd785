"""Memory and disk of every named configuration at its full sizes, computed from them: the table of docs/text.md.

    python -m figures.language.memory      prints it

Nothing is loaded: the language models' weights are counted from their architectures' sizes.
"""

import sys
from pathlib import Path
from typing import Any

from figures.language.configuration import configurations, load_configuration
from figures.language.estimate import TRAINED, study_passes
from figures.language.study import Study
from figures.registry import Context
from sasa_theory.activations.layout import ROW_BYTES, require_dtype
from sasa_theory.activations.live import BLOCK
from sasa_theory.training.cost import PER_PARAMETER, memory_of, parameters

#: model of a configuration -> transformers' class of its settings, and those that are not the class's defaults
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2": ("GPT2Config", {}),
    "mistralai/Mistral-7B-v0.1": ("MistralConfig", {}),
    "gemma3-270m": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262_144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
        },
    ),
}
HEADER = (
    "configuration",
    "D",
    "model weights",
    "a dictionary in training",
    "`matched-budget`",
    "`token-budget`",
    "`ablation`",
    "GPU, all / the first alone",
    "passes of `ablation` with 141 / 80 GB",
    "host beside a GPU",
    "disk",
)
#: memory of the GPUs that the table counts passes on
GPUS = (141e9, 80e9)


class Sized(Study):
    """A study of which only the sizes are asked: the width of its rows is given, and nothing is chosen yet."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__(load_configuration(name), Context("standard", (0,), Path()))
        self._width = width

    @property
    def width(self) -> int:
        return self._width

    def is_tuned(self) -> bool:
        return False


def weights_of(name: str) -> tuple[int, int]:
    """Width and parameters (without an untied head) of a model in MODELS."""
    import torch
    import transformers

    kind, sizes = MODELS[name]
    config: Any = getattr(transformers, kind)(**sizes)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    return int(config.hidden_size), sum(p.numel() for p in model.parameters())


def row(name: str) -> list[str]:
    """The configuration's row of the table, in the order of HEADER."""
    made = load_configuration(name)
    width, count = weights_of(made.model)
    weights = count * require_dtype(made.dtype).itemsize
    study = Sized(name, width)
    passes = study_passes(study, TRAINED)
    jobs = {repr(job): job for of in passes.values() for one in of for job in one}
    together = {figure: max(of, key=len) for figure, of in passes.items()}
    trained = {figure: sum(parameters(job.settings, width) for job in one) for figure, one in together.items()}
    block = 0 if made.stored else BLOCK * made.context * width
    gpu, host = {}, 0
    for figure in ("matched-budget", max(trained, key=lambda figure: trained[figure])):
        host, gpu[figure] = memory_of(trained[figure], made.batch_size * made.columns, block, weights, "cuda")
    rows = made.tokens * (2 * width + ROW_BYTES) if made.stored else made.evaluation_tokens * width * 4
    disk = rows + sum(parameters(job.settings, width) for job in jobs.values()) * PER_PARAMETER
    one = PER_PARAMETER * 2 * made.columns * width
    return [
        f"`{name}`",
        str(width),
        _gb(weights),
        _gb(one),
        *(f"{len(together[figure])}: {_gb(PER_PARAMETER * trained[figure])}" for figure in TRAINED),
        f"{_gb(max(gpu.values()))} / {_gb(gpu['matched-budget'])}",
        " / ".join(str(len(study.passes(together["ablation"], size - weights))) for size in GPUS),
        _gb(host),
        f"{_gb(disk)}, of it rows {_gb(rows)}",
    ]


def table() -> str:
    """The table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row(name) for name in configurations())]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
