"""The residual stream of any Hugging Face causal language model, through plain forward hooks.

    blocks.{i}.hook_resid_pre     the input of block i  (transformers' output_hidden_states[i])
    blocks.{i}.hook_resid_post    the output of block i, before the final norm for the last one

Only the base model is loaded, so there is no LM head to run, and the forward pass ends at the hook: a pre-hook keeps
the hidden state and raises a private exception. Documents are cut into contexts of at most `context` tokens, each
beginning with what the tokenizer puts in front of a text (BOS, or nothing); a context never crosses documents, and
contexts of one length are run together, so nothing is padded and no mask is needed.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sasa_theory.activations import gemma
from sasa_theory.activations.layout import require_dtype
from synthetic.errors import LabError, UsageError, unknown

if TYPE_CHECKING:
    from sasa_theory.activations.live import LiveStream
    from sasa_theory.activations.text import Texts

#: where the list of blocks is, below the base model (GPT-2 and Bloom; Llama, Mistral, Gemma; OPT; multimodal; MPT)
BLOCKS = ("h", "layers", "decoder.layers", "language_model.layers", "blocks")

#: text is tokenised in pieces of at most this many characters, cut at a line's end where there is one
PIECE = 1 << 17


class Place(NamedTuple):
    """Where a context begins: its number, its document, the character at which a piece of the document that is
    tokenised by itself begins, and the tokens of that piece that come before the context."""

    number: int = 0
    document: int = 0
    character: int = 0
    token: int = 0


#: of the first context of all
BEGINNING = Place()


@dataclass(frozen=True)
class Context:
    """One stretch of tokens that the model sees at once: its number, its document's number, its token ids.

    place  where it begins in the text, with which `LanguageModel.contexts` can begin there again.
    """

    number: int
    document: int
    ids: "Int[Tensor, ' T']"
    place: Place = BEGINNING


@dataclass(frozen=True)
class Activations:
    """Rows of one text at one hook, BOS included: rows (n, D) float32, token ids and positions (n,)."""

    rows: "Float[Tensor, 'n D']"
    tokens: "Int[Tensor, ' n']"
    positions: "Int[Tensor, ' n']"


class _Reached(Exception):
    """Ends a forward pass once the hidden state is in hand."""


class LanguageModel:
    """A causal language model without its head: token ids in, hidden states out.

    source       a directory, a hub name, or "gemma3-270m" (the offline package, see gemma.py).
    dtype        of the weights ("float32", "bfloat16", "float16"); rows come out as float32 in any case.
    context      tokens per context, BOS included.
    autocast     run matrix products in bfloat16, the residual stream in float32 (default: on CUDA only).
    prepend_bos  begin contexts with BOS although the tokenizer puts none there (GPT-2's does not).

    Raises UsageError for a model that is not there, is no causal LM or has no BOS to prepend, LabError when
    transformers is missing.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        dtype: str = "float32",
        device: "torch.device | str" = "cpu",
        context: int = 128,
        autocast: bool | None = None,
        prepend_bos: bool = False,
    ) -> None:
        self.name = str(source)
        self.device = torch.device(device)
        self.place = _place(self.name)
        model, self.tokenizer = _load(self.name, self.place, require_dtype(dtype))
        self.model: nn.Module = model.eval().requires_grad_(False).to(self.device)
        self.dtype, self.config = dtype, model.config.get_text_config()
        self.blocks = _find_blocks(model, int(self.config.num_hidden_layers))
        self.width = int(self.config.hidden_size)
        self.autocast = self.device.type == "cuda" if autocast is None else autocast
        self.prefix = _prefix(self.tokenizer)
        self.prepend_bos = prepend_bos
        if prepend_bos and (bos := self.tokenizer.bos_token_id) not in self.prefix:
            if bos is None:
                raise UsageError(f"prepend_bos is set, but the tokenizer of {self.name} has no BOS token")
            self.prefix = (int(bos), *self.prefix)
        self.special = frozenset(int(i) for i in self.tokenizer.all_special_ids)
        limit = getattr(self.config, "max_position_embeddings", None)
        if not len(self.prefix) < context <= (limit or context):
            raise UsageError(f"context is {context}; {self.name} takes from {len(self.prefix) + 1} to {limit} tokens")
        self.context = context

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    # ---- hidden states ---------------------------------------------------------------------------------------

    def run(self, ids: "Int[Tensor, 'B T']", hook: str) -> "Float[Tensor, 'B T D']":
        """Hidden states (float32) of a batch of contexts at `hook`; the pass ends there.

        Raises UsageError for an unknown hook or block.
        """
        block, post = self.find_hook(hook)
        kept: list[Tensor] = []

        def keep(hidden: Tensor) -> None:
            kept.append(hidden)
            raise _Reached

        def before(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            keep(args[0] if args else kwargs["hidden_states"])

        def after(_: nn.Module, __: object, output: "Tensor | tuple[Tensor, ...]") -> None:
            keep(output if isinstance(output, Tensor) else output[0])

        module = self.blocks[block]
        handle = (
            module.register_forward_hook(after) if post else module.register_forward_pre_hook(before, with_kwargs=True)
        )
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)
        try:
            with torch.no_grad(), precision, contextlib.suppress(_Reached):
                self.model(input_ids=ids.to(self.device), use_cache=False)
        finally:
            handle.remove()
        if not kept:
            raise LabError(f"the forward pass of {self.name} never reached {hook}")
        return kept[0].float()

    def find_hook(self, hook: str) -> tuple[int, bool]:
        """Block number, and whether its output (True) or input is meant. Raises UsageError for an unknown name."""
        match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)
        last = self.n_blocks - 1
        if match is None:
            raise unknown(
                "hook", hook, [f"blocks.{i}.hook_resid_{side}" for i in (0, last) for side in ("pre", "post")]
            )
        if int(match[1]) > last:
            raise UsageError(f"hook {hook!r}: {self.name} has {self.n_blocks} blocks, 0 to {last}")
        return int(match[1]), match[2] == "post"

    # ---- text ------------------------------------------------------------------------------------------------

    def contexts(self, texts: Iterable[str], start: Place = BEGINNING) -> Iterator[Context]:
        """The documents cut into contexts, numbered in order; documents without a token give none.

        start  the place of the context to begin with: the documents before it are walked past, not tokenised.
        """
        number = start.number
        prefix = torch.tensor(self.prefix, dtype=torch.long)
        room = self.context - len(self.prefix)
        for document, text in enumerate(islice(texts, start.document, None), start.document):
            character, token = start[2:] if document == start.document else (0, 0)
            tokens = islice(self._tokens(text, character), token, None)
            while chunk := list(islice(tokens, room)):
                ids = torch.tensor([token_id for *_, token_id in chunk], dtype=torch.long)
                place = Place(number, document, *chunk[0][:2])
                yield Context(number, document, torch.cat([prefix, ids]), place)
                number += 1

    def activations(self, texts: "Iterable[str]", hook: str, *, batch_tokens: int = 4096) -> "Iterator[Activations]":
        """The rows of each text at `hook`, one `Activations` a text, in order; nothing is dropped.

        A text longer than the context is run in several contexts. Raises UsageError for an unknown hook, for one
        string in place of a list, and for a text without a token.
        """
        self.find_hook(hook)
        if isinstance(texts, str):
            raise UsageError("texts is one string; give a list of strings")
        group: list[str] = []
        for text in texts:
            group.append(text)
            if len(group) == 512:
                yield from self._activations(group, hook, batch_tokens)
                group = []
        yield from self._activations(group, hook, batch_tokens)

    def last_states(self, texts: "list[str]", *, batch_tokens: int = 4096) -> "Float[Tensor, 'n blocks D']":
        """The input of every block at the last token of each text, in one pass: hook_resid_pre of all blocks.

        Raises UsageError for a text without a token or longer than the context.
        """
        contexts = list(self.contexts(texts))
        if [item.document for item in contexts] != list(range(len(texts))):
            raise UsageError(f"every text must have from one to {self.context - len(self.prefix)} tokens")
        out = torch.empty(len(texts), self.n_blocks, self.width)
        by_length: dict[int, list[int]] = {}
        for item in contexts:
            by_length.setdefault(len(item.ids), []).append(item.document)
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)
        for length, places in by_length.items():
            step = max(1, batch_tokens // length)
            for start in range(0, len(places), step):
                batch = places[start : start + step]
                ids = torch.stack([contexts[i].ids for i in batch]).to(self.device)
                with torch.no_grad(), precision:
                    states = self.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
                # the last entry is the output of the final norm, not the input of a block
                out[batch] = torch.stack([s[:, -1].float().cpu() for s in states[: self.n_blocks]], dim=1)
        return out

    def batches(
        self,
        size: int,
        device: "torch.device | str" = "cpu",
        stream: str = "train",
        *,
        texts: "Texts | Iterable[str]",
        hook: str,
        seed: int = 0,
    ) -> "LiveStream":
        """An endless, resumable stream of (size, D) batches of `hook` on `texts`, without a store (see live.py)."""
        from sasa_theory.activations.live import LiveActivations

        return LiveActivations(self, texts, hook).batches(size, device, stream, seed=seed)

    def run_contexts(
        self, contexts: "list[Context]", hook: str, *, batch_tokens: int = 1 << 15
    ) -> "list[Float[Tensor, 'T D']]":
        """Hidden states of each context, in order; contexts of one length are run together."""
        by_length: dict[int, list[int]] = {}
        for place, item in enumerate(contexts):
            by_length.setdefault(len(item.ids), []).append(place)
        out: list[Tensor] = [torch.empty(0)] * len(contexts)
        for length, places in by_length.items():
            step = max(1, batch_tokens // length)
            for start in range(0, len(places), step):
                batch = places[start : start + step]
                hidden = self.run(torch.stack([contexts[i].ids for i in batch]), hook).cpu()
                for place, rows in zip(batch, hidden, strict=True):
                    out[place] = rows
        return out

    # ---- inside ----------------------------------------------------------------------------------------------

    def _activations(self, group: list[str], hook: str, batch_tokens: int) -> Iterator[Activations]:
        contexts = list(self.contexts(group))
        hidden = self.run_contexts(contexts, hook, batch_tokens=batch_tokens)
        of_text: list[list[int]] = [[] for _ in group]
        for place, item in enumerate(contexts):
            of_text[item.document].append(place)
        for text, places in zip(group, of_text, strict=True):
            if not places:
                raise UsageError(f"the text {text[:40]!r} has no tokens; leave empty texts out")
            yield Activations(
                torch.cat([hidden[i] for i in places]),
                torch.cat([contexts[i].ids for i in places]),
                torch.cat([torch.arange(len(contexts[i].ids)) for i in places]),
            )

    def _tokens(self, text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """From the piece that begins at character `start` on: where its piece begins, number in it, and id of each."""
        while start < len(text):
            end = _cut(text, start)
            ids = self.tokenizer(text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
            yield from ((start, i, token_id) for i, token_id in enumerate(ids))
            start = end


def _cut(text: str, start: int) -> int:
    """Where the piece that begins at `start` ends: after a line, else before a space, else anywhere."""
    if len(text) - start <= PIECE:
        return len(text)
    line = text.rfind("\n", start, start + PIECE) + 1
    return line or max(text.rfind(" ", start + 1, start + PIECE), 0) or start + PIECE


def _place(name: str) -> str:
    return str(gemma.directory()) if name == gemma.NAME else name


def _load(name: str, place: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise LabError("language models need transformers: pip install 'sasa-lab[lm]'") from error
    try:
        with _quiet(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
            model, report = transformers.AutoModel.from_pretrained(place, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"no language model could be loaded from {name!r}: give a directory with a Hugging Face model, a hub name "
            f"(needs the network), or {gemma.NAME!r} ({reason})"
        ) from error
    if report["missing_keys"]:
        raise UsageError(
            f"{name!r} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}, ... that a "
            f"{type(model).__name__} has; it is another kind of model, or incomplete"
        )
    return model, tokenizer


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No progress bar, and no report that the LM head was left out; what matters in the report is checked."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _find_blocks(model: nn.Module, count: int) -> nn.ModuleList:
    for path in BLOCKS:
        with contextlib.suppress(AttributeError):
            blocks = model.get_submodule(path)
            if isinstance(blocks, nn.ModuleList) and len(blocks) == count:
                return blocks
    raise UsageError(
        f"{type(model).__name__} is not a kind of model whose blocks are known (looked for {', '.join(BLOCKS)})"
    )


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer puts in front of a text: (BOS,) or ()."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    return ()
