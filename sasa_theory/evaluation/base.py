"""What a calculator is, and how its numbers say which way is better.

A calculator is fed batches and asked once:

    calculator.update(x, xhat, codes, truth)        # any number of times
    result = calculator.compute()                   # a frozen dataclass

Every field of a result is declared as `field(metadata=lower(unit, meaning))`, or higher, or neither, so that each
number says which way is better; `describe(result)` turns a result into plain JSON with that beside the value. Sums are
float64, and the result does not depend on how the rows were cut into batches.
"""

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models.codes import Codes
from synthetic.errors import LabError

if TYPE_CHECKING:
    from synthetic.world import Batch


class Calculator(Protocol):
    """A streaming measurement; `name` is its key in a result file, `needs_truth` whether it reads `truth`."""

    name: ClassVar[str]
    needs_truth: ClassVar[bool]

    def update(
        self, x: "Float[Tensor, 'B D']", xhat: "Float[Tensor, 'B D']", codes: Codes, truth: "Batch | None" = None
    ) -> None: ...

    def compute(self) -> Any: ...


def higher(unit: str, meaning: str, report: bool = True) -> dict[str, Any]:
    """Metadata of a number that is better when higher; `report=False` keeps it out of result files."""
    return {"better": "higher", "unit": unit, "meaning": meaning, "report": report}


def lower(unit: str, meaning: str, report: bool = True) -> dict[str, Any]:
    """Metadata of a number that is better when lower."""
    return higher(unit, meaning, report) | {"better": "lower"}


def neither(unit: str, meaning: str, report: bool = True) -> dict[str, Any]:
    """Metadata of a number that only says what was measured: a size, a setting, an index."""
    return higher(unit, meaning, report) | {"better": "neither"}


def describe(result: Any) -> dict[str, dict[str, Any]]:
    """Every reported number of a result: name -> {"value", "better", "unit", "meaning"}, ready for JSON.

    Arrays become lists; values that are not finite (never reached, not measured) become None. A None means "not
    measured" and is kept, so that a reader sees that the number exists.
    """
    described = {}
    for item in fields(result):
        if item.metadata.get("report"):
            entry = {"value": plain(getattr(result, item.name))}
            described[item.name] = entry | {key: item.metadata[key] for key in ("better", "unit", "meaning")}
    return described


def plain(value: Any) -> Any:
    """`value` as JSON holds it: numbers, strings, None, lists and dicts; a non-finite number becomes None."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def require_truth(truth: "Batch | None", name: str) -> "Batch":
    """`truth`, or a LabError that says which calculator cannot do without it."""
    if truth is None:
        raise LabError(f"{name!r} compares with planted truth, but the batches carry none; evaluate on a World")
    return truth


def require_some(count: int, name: str) -> None:
    """Raise LabError when a calculator is asked for a result before it saw a row."""
    if count == 0:
        raise LabError(f"{name!r} was asked for a result before it saw any row; call update first")
