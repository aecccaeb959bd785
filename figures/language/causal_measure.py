"""What a language model says next when one part of one word's state is changed.

Each prompt is run once up to the hook; an intervention changes the states at the word (site "word"), or at the word and
all tokens after it (site "onward", as later tokens have by then read from the word), and the rest of the model is run.
Read at the last token: the probability of all words of the concept, that of the right answer, and how far the
distribution over all other tokens has moved (KL in nats, "rest").
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from figures.language.causal_prompts import PromptSet
from sasa_theory.activations.continuation import Continuation
from sasa_theory.concepts.interventions import Part, random_like, rivals
from synthetic.errors import LabError

SITES = ("word", "onward")
MEASURES = ("class", "right", "rest")
#: how far along the concept's order a word is moved: two on, and half way round
STEPS = (2, 0)
#: prompts run together
BATCH = 64

#: rows of states at the site (k, D), with the prompt each belongs to (k,) -> what is put in their place
Edit = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reading:
    """Per prompt: P(any word of the concept), P(right answer), KL of the rest, and log P of every word."""

    values: "Mapping[str, Float[np.ndarray, ' n']]"
    log_words: "Float[np.ndarray, 'n C']"


class Scene:
    """One set of prompts with its states at the hook, and the model that goes on from them."""

    def __init__(self, rest: Continuation, prompts: PromptSet) -> None:
        self.rest, self.prompts = rest, prompts
        self.states = rest.model.run(prompts.ids, rest.hook)
        neutral = rest.model.run(prompts.neutral, rest.hook)
        self.n = len(prompts.ids)
        #: a neutral word's states for every prompt, the words taken in turn
        self.neutral = neutral[torch.arange(self.n) % len(neutral)]
        self.everyone = torch.arange(self.n)
        self._clean: Tensor | None = None
        self.clean = self.read(self.states, self.everyone)

    def read(self, states: "Float[Tensor, 'k T D']", of: "Int[Tensor, ' k']") -> Reading:
        """Readings of changed states; `of` says which prompt each belongs to."""
        rows = [self._read(states[i : i + BATCH], of[i : i + BATCH]) for i in range(0, len(of), BATCH)]
        values = {name: np.concatenate([row[0][name] for row in rows]) for name in MEASURES}
        return Reading(values, np.concatenate([row[1] for row in rows]))

    def likeliest(self) -> "Int[Tensor, ' n']":
        """The likeliest next token of each untouched prompt, among all tokens."""
        if self._clean is None:
            raise LabError("the prompts have not been read yet")
        return self._clean.argmax(dim=1).cpu()

    def at(self, site: str) -> slice:
        """Which tokens an intervention at this site changes."""
        place = self.prompts.place
        return slice(place, place + 1 if site == "word" else None)

    def changed(self, site: str, edit: Edit, base: "Float[Tensor, 'n T D'] | None" = None) -> "Float[Tensor, 'n T D']":
        """The prompts' states, or `base`, with `edit` applied to the rows at the site."""
        out = (self.states if base is None else base).clone()
        rows = out[:, self.at(site)]
        owner = self.everyone[:, None].expand(rows.shape[:2]).flatten()
        out[:, self.at(site)] = edit(rows.flatten(0, 1), owner).reshape(rows.shape).to(out)
        return out

    def moves(self) -> Iterator[Tensor]:
        """For every step the prompt whose word each prompt's word is changed into."""
        for step in STEPS:
            yield (self.everyone + (step or self.n // 2)) % self.n

    def _read(self, states: Tensor, of: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        final = self.rest.finish(states)[:, -1]
        words = self.prompts.classes.to(final.device)
        found: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
        log_words, whole = [], []
        for i in range(0, len(of), self.rest.chunk):
            part = slice(i, i + self.rest.chunk)
            log_q = torch.log_softmax(self.rest.logits(final[part]), dim=-1)
            log_p = log_q if self._clean is None else self._clean[of[part].to(log_q.device)]
            if self._clean is None:
                whole.append(log_q)
            found["class"].append(log_q[:, words].exp().sum(dim=1))
            found["right"].append(log_q.gather(1, self.prompts.answers[of[part], None].to(log_q.device))[:, 0].exp())
            found["rest"].append(_rest_kl(log_p, log_q, words))
            log_words.append(log_q[:, words])
        if self._clean is None:
            self._clean = torch.cat(whole)  # the first reading is that of the untouched prompts, in one batch
        values = {name: torch.cat(parts).double().cpu().numpy() for name, parts in found.items()}
        return values, torch.cat(log_words).double().cpu().numpy()


def ceilings(scene: Scene, site: str) -> "dict[str, dict[str, Float[np.ndarray, ' n']]]":
    """The most an intervention at the site can do: a neutral word's whole state, and another word's whole state."""
    at = scene.at(site)
    states = scene.states.clone()
    states[:, at] = scene.neutral[:, at]
    neutral = dict(scene.read(states, scene.everyone).values)
    moved = []
    for target in scene.moves():
        states = scene.states.clone()
        states[:, at] = scene.states[target][:, at]
        moved.append(_moved(scene, scene.read(states, scene.everyone), target))
    return {"neutral": neutral, "move": _mean(moved)}


def effects(scene: Scene, site: str, part: Part) -> "dict[str, dict[str, Float[np.ndarray, ' n']]]":
    """Remove a part, put it into a neutral word's state ("restore"), and replace it by another word's ("move")."""
    at = scene.at(site)
    removed = scene.read(scene.changed(site, lambda rows, _: part.remove(rows)), scene.everyone)
    own = part.of(scene.states[:, at].flatten(0, 1))

    def restore(rows: Tensor, _: Tensor) -> Tensor:
        return rows - part.of(rows) + own

    base = scene.states.clone()
    base[:, at] = scene.neutral[:, at]
    restored = scene.read(scene.changed(site, restore, base), scene.everyone)
    moved = []
    for target in scene.moves():
        other = part.of(scene.states[target][:, at].flatten(0, 1))
        states = scene.changed(site, lambda rows, _, other=other: rows - own + other)  # type: ignore[misc]
        moved.append(_moved(scene, scene.read(states, scene.everyone), target))
    return {"remove": dict(removed.values), "restore": dict(restored.values), "move": _mean(moved)}


def random_effects(
    scene: Scene, site: str, part: Part, draws: int, generator: torch.Generator, size: float = 1.0
) -> "dict[str, Float[np.ndarray, ' n']]":
    """Remove random vectors of `size` times the part's norm: the mean over draws."""
    like = size * part.of(scene.states[:, scene.at(site)].flatten(0, 1))
    found = []
    for _ in range(draws):
        noise = random_like(like, generator)
        states = scene.changed(site, lambda rows, _, noise=noise: rows - noise)  # type: ignore[misc]
        found.append(dict(scene.read(states, scene.everyone).values))
    return _mean(found)


def rival_effects(scene: Scene, site: str, part: Part) -> "dict[str, Float[np.ndarray, ' n']]":
    """Remove, in each prompt, what another unit holds that is on at the word, of the nearest norm."""
    others = rivals(part.model, scene.states[:, scene.prompts.place], part.units)

    def edit(rows: Tensor, owner: Tensor) -> Tensor:
        out = rows.clone()
        for i, unit in enumerate(others):
            if unit is not None:
                mine = owner == i
                out[mine] = Part(part.model, (unit,), part.kind).remove(rows[mine])
        return out

    return dict(scene.read(scene.changed(site, edit), scene.everyone).values)


def on_share(scene: Scene, part: Part) -> "Float[np.ndarray, ' n']":
    """Whether any of the units is on at each prompt's word."""
    codes = part.model.encode(scene.states[:, scene.prompts.place])
    row, unit, _ = codes.pairs()
    hit = torch.isin(unit, torch.tensor(part.units, device=unit.device))
    return np.bincount(row[hit].cpu().numpy(), minlength=scene.n).clip(max=1).astype(float)


def _rest_kl(log_p: Tensor, log_q: Tensor, words: Tensor) -> Tensor:
    """KL between two next-token distributions, each given that the next token is none of `words`."""
    outside = torch.ones(log_p.shape[1], dtype=torch.bool, device=log_p.device)
    outside[words] = False
    p, q = log_p.masked_fill(~outside, -torch.inf), log_q.masked_fill(~outside, -torch.inf)
    p, q = (x - torch.logsumexp(x, dim=1, keepdim=True) for x in (p, q))
    return (p.exp() * (p - q).masked_fill(~outside, 0.0)).sum(dim=1)


def _moved(scene: Scene, reading: Reading, target: Tensor) -> dict[str, np.ndarray]:
    """How far the answer has gone from that of the prompt's word to that of the target's.

    shift   change of log P(target's answer) - log P(own answer), in nats.
    moved   1 where the target's answer is the likeliest of the concept's words.
    """
    right = scene.prompts.right.numpy()
    own, wanted = right, right[target.numpy()]
    row = np.arange(scene.n)

    def lead(log_words: np.ndarray) -> np.ndarray:
        return log_words[row, wanted] - log_words[row, own]

    return {
        "shift": lead(reading.log_words) - lead(scene.clean.log_words),
        "moved": (reading.log_words.argmax(axis=1) == wanted).astype(float),
    }


def _mean(rows: "list[dict[str, np.ndarray]]") -> dict[str, np.ndarray]:
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
