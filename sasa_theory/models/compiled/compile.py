"""How every loop here is compiled, and where what was compiled is kept.

numba keeps a function's machine code until the function's own file changes, whatever becomes of the functions it calls
in other files. So the code is kept in a folder named after the text of all loops.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

HERE = Path(__file__).parent
KEPT = f"loops-{hashlib.sha256(b''.join(path.read_bytes() for path in sorted(HERE.glob('*.py')))).hexdigest()[:12]}"
#: sums may be reordered and fused, as a BLAS does; NaN and Inf keep their meaning, and a division by zero is not looked
#: for (the test would keep the processor from dividing sixteen numbers at once)
OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy", "cache": True}

ZERO = np.float32(0.0)


def compiled(function: Callable[..., Any]) -> Any:
    """`function`, compiled at its first call; where the folder cannot be written, numba keeps its code elsewhere."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = os.path.join(before or HERE / "__pycache__", KEPT)
    try:
        return numba.njit(**OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before
