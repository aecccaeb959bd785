"""What a language model loses when a dictionary's reconstruction takes the place of its hidden states.

At the hook every ordinary token's state is replaced by its reconstruction and the rest of the model is run; tokens that
a store leaves out (special tokens, attention sinks) keep their own state and are counted. With the losses of the
untouched pass (clean) and of passes in which the same tokens are set to zero, or to their mean, instead,

    CE score = (L_zero - L_spliced) / (L_zero - L_clean)       KL score = 1 - KL(clean || spliced) / KL(clean || zero)

1 for a perfect reconstruction, 0 for one as bad as zero; the loss is the mean of -log p(next token) in nats, KL the
mean divergence of the next token's distribution. Predictions made before the first replaced token of a context are
the same in every pass and left out. Intervals are bootstrap over contexts. Clean and ablated passes are made once
for all dictionaries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sasa_theory.activations.continuation import Continuation
from sasa_theory.activations.gather import TokenFilter
from sasa_theory.activations.language_model import Context, LanguageModel
from sasa_theory.activations.store import ActivationStore
from sasa_theory.evaluation.base import higher, lower, neither
from sasa_theory.models.base import SparseModel
from sasa_theory.models.normaliser import NormalisedModel
from sasa_theory.resampling import bootstrap
from synthetic.errors import DataError, UsageError

Dictionary = SparseModel | NormalisedModel
#: states (n, D) of replaced tokens -> what is put in their place
Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SpliceTokens:
    """One number per scored prediction: its context's number, losses and divergences from the clean pass (nats)."""

    contexts: "Int[np.ndarray, ' n']"
    clean: "Float[np.ndarray, ' n']"
    zero: "Float[np.ndarray, ' n']"
    mean: "Float[np.ndarray, ' n']"
    spliced: "Float[np.ndarray, ' n']"
    kl: "Float[np.ndarray, ' n']"
    kl_zero: "Float[np.ndarray, ' n']"
    kl_mean: "Float[np.ndarray, ' n']"


@dataclass(frozen=True)
class SpliceResult:
    ce_score: float = field(metadata=higher("share", "(L_zero - L_spliced) / (L_zero - L_clean)"))
    ce_interval: tuple[float, float] = field(metadata=neither("share", "95 % bootstrap interval over contexts"))
    kl_score: float = field(metadata=higher("share", "1 - KL(clean||spliced) / KL(clean||zero)"))
    kl_interval: tuple[float, float] = field(metadata=neither("share", "95 % bootstrap interval over contexts"))
    ce_score_mean: float = field(metadata=higher("share", "CE score with the mean state in place of zero"))
    kl_score_mean: float = field(metadata=higher("share", "KL score with the mean state in place of zero"))
    loss_spliced: float = field(metadata=lower("nats", "mean loss with the reconstruction spliced in"))
    loss_clean: float = field(metadata=lower("nats", "mean loss of the untouched model"))
    loss_zero: float = field(metadata=neither("nats", "mean loss with the same tokens' states set to zero"))
    loss_mean: float = field(metadata=neither("nats", "mean loss with the same tokens' states set to their mean"))
    kl: float = field(metadata=lower("nats", "mean KL(clean || spliced)"))
    kl_zero: float = field(metadata=neither("nats", "mean KL(clean || zero)"))
    kl_mean: float = field(metadata=neither("nats", "mean KL(clean || mean)"))
    predictions: int = field(metadata=neither("tokens", "predictions scored"))
    replaced: int = field(metadata=neither("tokens", "tokens whose state was replaced"))
    left: dict[str, int] = field(metadata=neither("tokens", "tokens left as they are, by reason"))
    tokens: SpliceTokens = field(metadata=neither("", "per-token values", report=False), repr=False)


def ordinary_tokens(language_model: LanguageModel, store: ActivationStore | None = None) -> TokenFilter:
    """Which tokens a dictionary is answerable for: those that `store` keeps; without one, all but special tokens."""
    meta = store.meta if store else {}
    limit, median = meta.get("norm_limit"), store.manifest.notes.get("median_norm") if store else None
    largest = float("inf") if limit is None or median is None else float(limit) * float(median)
    special = torch.tensor(sorted(language_model.special), dtype=torch.long)
    return TokenFilter(special, largest, bool(meta.get("keep_special", False)))


def splice_scores(
    language_model: LanguageModel,
    hook: str,
    contexts: "list[Context]",
    dictionaries: "Mapping[str, Dictionary]",
    *,
    ordinary: TokenFilter | None = None,
    rng: np.random.Generator | None = None,
    batch_tokens: int = 1024,
) -> "dict[str, SpliceResult]":
    """CE and KL scores of each dictionary at `hook` on the given contexts (module docstring).

    contexts      whole contexts, BOS included, as `language_model.contexts` gives them.
    dictionaries  name -> model that takes and gives raw states of the hook.
    ordinary      which tokens are replaced (default: all but special ones); see `ordinary_tokens`.
    rng           draws the bootstrap (default: seed 0).
    Raises UsageError for no context, no dictionary or a wrong width, DataError when no prediction can be scored or a
    reconstruction is not finite.
    """
    if not contexts or not dictionaries:
        raise UsageError(f"splicing needs contexts and dictionaries; got {len(contexts)} and {len(dictionaries)}")
    for name, model in dictionaries.items():
        if model.width_in != language_model.width:
            raise UsageError(f"{name} has width {model.width_in}, the states of {hook} have {language_model.width}")
    ordinary = ordinary or ordinary_tokens(language_model)
    rest = Continuation(language_model, hook)
    hidden = language_model.run_contexts(contexts, hook)
    keep, left = _replaced(contexts, hidden, ordinary)
    if not any(bool(mask[:-1].any()) for mask in keep):
        raise DataError("no context has an ordinary token with another after it: there is nothing to splice")
    mean = torch.cat([rows[mask] for rows, mask in zip(hidden, keep, strict=True)]).double().mean(dim=0).float()
    replacements: list[Replace] = [
        torch.zeros_like,
        lambda rows: mean.to(rows).expand_as(rows),
        *(_reconstruction(name, model) for name, model in dictionaries.items()),
    ]
    numbers: list[Tensor] = []
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    for batch in _batches(contexts, batch_tokens):
        ids = torch.stack([contexts[i].ids for i in batch])
        states = torch.stack([hidden[i] for i in batch]).to(language_model.device)
        mask = torch.stack([keep[i] for i in batch])
        scored = mask.cumsum(dim=1)[:, :-1] > 0
        on, replaced_here = scored.to(states.device), mask.to(states.device)
        finals = []
        for replace in replacements:
            changed = states.clone()
            changed[replaced_here] = replace(states[replaced_here]).to(states)
            finals.append(rest.finish(changed)[:, :-1][on])
        loss, kl = rest.compare(rest.finish(states)[:, :-1][on], finals, ids[:, 1:][scored])
        numbers.append(torch.tensor([contexts[i].number for i in batch])[:, None].expand_as(scored)[scored])
        losses.append(loss)
        divergences.append(kl)
    number, loss_of, kl_of = (torch.cat(parts, dim=-1).numpy() for parts in (numbers, losses, divergences))
    replaced = sum(int(mask.sum()) for mask in keep)
    generator = rng or np.random.default_rng(0)
    results = {}
    for i, name in enumerate(dictionaries):
        tokens = SpliceTokens(
            number,
            clean=loss_of[0],
            zero=loss_of[1],
            mean=loss_of[2],
            spliced=loss_of[i + 3],
            kl=kl_of[i + 2],
            kl_zero=kl_of[0],
            kl_mean=kl_of[1],
        )
        results[name] = _result(tokens, replaced, left, generator)
    return results


def _replaced(
    contexts: list[Context], hidden: list[Tensor], ordinary: TokenFilter
) -> tuple[list[Tensor], dict[str, int]]:
    """Per context a mask of the tokens to replace, and how many are left for which reason."""
    masks: list[Tensor] = []
    left: dict[str, int] = {}
    for item, rows in zip(contexts, hidden, strict=True):
        mask, dropped = ordinary.keep(item.ids, torch.linalg.vector_norm(rows, dim=1))
        masks.append(mask)
        for reason, count in dropped.items():
            left[reason] = left.get(reason, 0) + count
    return masks, left


def _batches(contexts: list[Context], batch_tokens: int) -> list[list[int]]:
    """Places of contexts of one length, at most `batch_tokens` tokens together."""
    by_length: dict[int, list[int]] = {}
    for place, item in enumerate(contexts):
        by_length.setdefault(len(item.ids), []).append(place)
    out = []
    for length, places in by_length.items():
        step = max(1, batch_tokens // length)
        out += [places[i : i + step] for i in range(0, len(places), step)]
    return out


def _reconstruction(name: str, model: Dictionary) -> Replace:
    def replace(rows: Tensor) -> Tensor:
        with torch.no_grad():
            out = model.reconstruct(rows)[0]
        if not bool(torch.isfinite(out).all()):
            raise DataError(f"{name} reconstructs some states as NaN or Inf; it cannot be spliced in")
        return out

    return replace


def _result(tokens: SpliceTokens, replaced: int, left: dict[str, int], rng: np.random.Generator) -> SpliceResult:
    columns = np.stack(
        [tokens.clean, tokens.zero, tokens.mean, tokens.spliced, tokens.kl, tokens.kl_zero, tokens.kl_mean], axis=1
    )
    _, unit = np.unique(tokens.contexts, return_inverse=True)
    sums = np.zeros((int(unit.max()) + 1, columns.shape[1]))
    np.add.at(sums, unit, columns)

    def ce(total: np.ndarray, base: int = 1) -> np.ndarray:
        return (total[..., base] - total[..., 3]) / (total[..., base] - total[..., 0])

    def kl(total: np.ndarray, base: int = 5) -> np.ndarray:
        return 1 - total[..., 4] / total[..., base]

    total, average = sums.sum(axis=0), columns.mean(axis=0)
    return SpliceResult(
        ce_score=float(ce(total)),
        ce_interval=bootstrap(sums, ce, rng),
        kl_score=float(kl(total)),
        kl_interval=bootstrap(sums, kl, rng),
        ce_score_mean=float(ce(total, 2)),
        kl_score_mean=float(kl(total, 6)),
        loss_clean=float(average[0]),
        loss_zero=float(average[1]),
        loss_mean=float(average[2]),
        loss_spliced=float(average[3]),
        kl=float(average[4]),
        kl_zero=float(average[5]),
        kl_mean=float(average[6]),
        predictions=len(columns),
        replaced=replaced,
        left=left,
        tokens=tokens,
    )
