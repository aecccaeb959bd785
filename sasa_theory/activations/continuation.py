"""The rest of a forward pass: hidden states at a hook in, probabilities of the next token out.

`LanguageModel` ends a pass at a hook; this goes on from there. The base model itself is run, so that masks, rotary
embeddings and norms are its own, with every block before the hook replaced for the call by one that hands on the given
states. The head is the causal model's own code too: it is built without weights, its base model is replaced by a stub
that returns the states it is given, and only the head's weights are filled in, by the embedding when the two are tied
and from the checkpoint otherwise. No second copy of the model is made.

Logits of a large vocabulary are never held for a whole batch: `compare` and `log_probs` take a few tokens at a time.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sasa_theory.activations.language_model import LanguageModel
from synthetic.errors import LabError, UsageError

#: bytes that the logits of one chunk of tokens may take; each chunk reads the whole head (0.7 GB of Gemma-3-270M): a
#: small one does little else
LOGIT_BYTES = 1 << 28


class Continuation:
    """Blocks after `hook`, final norm and head of a language model.

    model   whose blocks are used; nothing of it is copied or changed.
    Raises UsageError for an unknown hook, and for a head whose weights are not in the checkpoint.
    """

    def __init__(self, model: LanguageModel, hook: str) -> None:
        block, post = model.find_hook(hook)
        self.model, self.hook = model, hook
        self.first = block + post
        self._causal, self.head = _head(model)
        self.vocabulary = len(self.head.weight)
        self.chunk = max(1, LOGIT_BYTES // (4 * self.vocabulary))
        self._tuples = _gives_tuples(model)

    def finish(self, states: "Float[Tensor, 'B T D']") -> "Float[Tensor, 'B T D']":
        """What the head sees (float32, after the final norm), given the states of whole contexts at the hook.

        Position t of `states` is token t of the context, BOS included. Raises UsageError for another shape.
        """
        if states.ndim != 3 or states.shape[2] != self.model.width:
            raise UsageError(f"states have shape {tuple(states.shape)}; expected (B, T, {self.model.width})")
        base = self.model.model
        given = states.to(self.model.device, torch.float32 if self.model.autocast else next(base.parameters()).dtype)
        with torch.no_grad(), self._precision(), self._starting_from(given):
            final: Tensor = base(inputs_embeds=given, use_cache=False).last_hidden_state
        return final.float()

    def logits(self, final: "Float[Tensor, 'n D']") -> "Float[Tensor, 'n V']":
        """Logits (float32) of the next token from what `finish` gives; for few tokens at a time."""
        given = final.to(self.model.device, torch.float32 if self.model.autocast else self.head.weight.dtype)
        with torch.no_grad(), self._precision():
            logits: Tensor = self._causal(inputs_embeds=given[None], use_cache=False).logits[0]
        return logits.float()

    def log_probs(self, final: "Float[Tensor, 'n D']", ids: "Int[Tensor, ' m']") -> "Float[Tensor, 'n m']":
        """Log-probabilities (nats) of the tokens `ids` as the next one."""
        ids = ids.to(self.model.device)
        return torch.cat([self._log_softmax(part)[:, ids] for part in final.split(self.chunk)])

    def compare(
        self,
        reference: "Float[Tensor, 'n D']",
        others: "Sequence[Float[Tensor, 'n D']]",
        targets: "Int[Tensor, ' n']",
    ) -> "tuple[Float[Tensor, 'm+1 n'], Float[Tensor, 'm n']]":
        """Losses and divergences (nats) of several final states of the same tokens, the reference's logits made once.

        losses   -log p(target): of the reference, then of each of `others`.
        kl       KL(reference || other) over the vocabulary, for each of `others`.
        Both float64 on the CPU.
        """
        losses = torch.empty(len(others) + 1, len(targets), dtype=torch.float64)
        kl = torch.empty(len(others), len(targets), dtype=torch.float64)
        for start in range(0, len(targets), self.chunk):
            part = slice(start, start + self.chunk)
            truth = targets[part, None].to(self.model.device)
            log_p = self._log_softmax(reference[part])
            losses[0, part] = -log_p.gather(1, truth)[:, 0].double().cpu()
            p = log_p.exp()
            for i, other in enumerate(others):
                log_q = self._log_softmax(other[part])
                losses[i + 1, part] = -log_q.gather(1, truth)[:, 0].double().cpu()
                kl[i, part] = torch.linalg.vecdot(p, log_p - log_q).double().cpu()
        return losses, kl

    # ---- inside ----------------------------------------------------------------------------------------------

    def _log_softmax(self, final: Tensor) -> Tensor:
        return torch.log_softmax(self.logits(final), dim=-1)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.model.autocast)

    @contextlib.contextmanager
    def _starting_from(self, states: Tensor) -> Iterator[None]:
        """While this is open, the base model's blocks before the hook do nothing but hand on `states`."""
        skipped = list(self.model.blocks[: self.first])

        def skip(*_: object, **__: object) -> "Tensor | tuple[Tensor]":
            return (states,) if self._tuples else states

        def put_in(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "tuple[Any, dict[str, Any]]":
            return (states, *args[1:]), {k: v for k, v in kwargs.items() if k != "hidden_states"}

        # with no block to skip, the states must be put past what comes before block 0 (GPT-2 adds positions there)
        handle = None if skipped else self.model.blocks[0].register_forward_pre_hook(put_in, with_kwargs=True)
        try:
            for block in skipped:
                block.forward = skip
            yield
        finally:
            for block in skipped:
                vars(block).pop("forward", None)
            if handle is not None:
                handle.remove()


class _Given(nn.Module):
    """Stands in a causal model for its base model: its last hidden states are the inputs it was given."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _head(model: LanguageModel) -> "tuple[Any, nn.Linear]":
    """The causal model of this kind with a stub for its base model, and its head with the right weights."""
    import transformers

    with torch.device("meta"):
        causal = transformers.AutoModelForCausalLM.from_config(model.config).eval().requires_grad_(False)
    head = causal.get_output_embeddings()
    setattr(causal, causal.base_model_prefix, _Given())
    name = next((key for key, module in causal.named_modules() if module is head), None)
    if name is None or not isinstance(head, nn.Linear):
        raise UsageError(f"{model.name}: the head of a {type(causal).__name__} is not one linear layer; not supported")
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    like = model.model.get_input_embeddings().weight  # type: ignore[operator]
    for part, _ in list(head.named_parameters()):
        value = like if tied and part == "weight" else _stored(model, f"{name}.{part}").to(like)
        setattr(head, part, nn.Parameter(value, requires_grad=False))
    if left := [key for key, value in causal.named_parameters() if value.is_meta]:
        raise UsageError(f"the head of a {type(causal).__name__} has further weights that are not known: {left[:3]}")
    return causal, head


def _stored(model: LanguageModel, name: str) -> Tensor:
    """One tensor of the model's checkpoint, read alone."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    def file(of: str) -> "str | None":
        try:
            return cached_file(model.place, of)
        except OSError:
            return None

    if index := file("model.safetensors.index.json"):
        with open(index, encoding="utf-8") as text:
            shards = json.load(text)["weight_map"]
        found = next((key for key in shards if key == name or key.endswith(f".{name}")), None)
        whole = file(shards[found]) if found else None
    else:
        whole = file("model.safetensors")
    if whole:
        with safe_open(whole, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                if key == name or key.endswith(f".{name}"):
                    tensor: Tensor = weights.get_tensor(key)
                    return tensor
    raise UsageError(
        f"the head of {model.name} is not tied to its embedding, and its safetensors files do not hold {name}; "
        "save the model again with its head (AutoModelForCausalLM ... save_pretrained)"
    )


class _Seen(Exception):
    """Ends a forward pass once the form of a block's output is known."""


def _gives_tuples(model: LanguageModel) -> bool:
    """Whether the blocks of this kind return (states, ...) instead of the states (older transformers)."""
    seen: list[bool] = []

    def look(_: nn.Module, __: object, output: object) -> None:
        seen.append(isinstance(output, tuple))
        raise _Seen

    handle = model.blocks[0].register_forward_hook(look)
    try:
        with torch.no_grad(), contextlib.suppress(_Seen):
            model.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
    if not seen:
        raise LabError(f"the forward pass of {model.name} never reached its first block")
    return seen[0]
