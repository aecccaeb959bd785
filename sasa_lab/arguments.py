"""What several commands read from their arguments: key=value pairs, a device, and the data to train or measure on."""

import ast
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthetic.errors import UsageError

if TYPE_CHECKING:
    from synthetic.source import Dataset


def pairs(words: Iterable[str], option: str) -> dict[str, str]:
    """`["a=1", "b=x"]` as a dict; raises UsageError for a word without "=" and for a key given twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {word!r} is not of the form key=value")
        if key in found:
            raise UsageError(f"{option} gives {key!r} twice; give it once")
        found[key] = value
    return found


def settings(words: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """Like `pairs`, with numbers, true, false and none read as such."""
    return {key: _literal(value) for key, value in pairs(words, option).items()}


def checked_device(name: str) -> str:
    """`name` if torch has that device here; raises UsageError otherwise."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from None
    return name


def dataset(world: str | None, store: Path | None) -> "Dataset":
    """The planted world or the activation store that was asked for; raises UsageError unless it is exactly one."""
    if (world is None) == (store is None):
        given = "both" if world is not None else "neither"
        raise UsageError(f"expected one of --world SPEC and --store DIR, got {given}")
    if world is not None:
        from synthetic.world import World

        return World.from_spec(world)
    from sasa_theory.activations import ActivationStore

    return ActivationStore(str(store))


def live(
    model: str,
    hook: str | None,
    text: Iterable[str],
    context: int,
    device: str,
    *,
    keep_special: bool,
    norm_limit: float,
    prepend_bos: bool,
) -> "Dataset":
    """Activations of a language model that runs beside what reads them, without a store (norm_limit inf: none).

    Raises UsageError without a hook or text, or without the package transformers.
    """
    words = list(text)
    if hook is None or not words:
        raise UsageError("--model needs --hook NAME and --text TEXT beside it, as `sasa-lab activations` does")
    require_transformers()
    largest = limit(norm_limit)
    from sasa_theory.activations import LanguageModel, LiveActivations, read_text

    return LiveActivations(
        LanguageModel(model, device=device, context=context, prepend_bos=prepend_bos),
        read_text(words),
        hook,
        norm_limit=largest,
        keep_special=keep_special,
    )


def limit(medians: float) -> float | None:
    """`--norm-limit` as a multiple of the median norm, None for inf; raises UsageError unless it is positive."""
    if not medians > 0:
        raise UsageError(f"--norm-limit is {medians}; expected a positive multiple of the median norm, or inf")
    return None if medians == float("inf") else medians


def require_transformers() -> None:
    """Raise UsageError where the extra `lm` is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UsageError(
            "reading a language model needs the package transformers; install the extra: pip install -e '.[lm]'"
        ) from None


def deadline(max_minutes: float | None) -> float | None:
    """The time.monotonic() value at which to stop; raises UsageError for a time that is not positive."""
    if max_minutes is None:
        return None
    if not max_minutes > 0:
        raise UsageError(f"--max-minutes is {max_minutes}; expected a positive number")
    return time.monotonic() + 60 * max_minutes


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
