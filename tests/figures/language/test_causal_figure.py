"""Figure `causal` on a planted language model, in which one plane of the state makes the answer and is known."""

import json
import math

import numpy as np
import pytest
import torch

import figures.language.causal as causal
import figures.language.causal_prompts as causal_prompts
from figures import Context
from figures.language.causal_measure import Scene, effects
from figures.language.causal_prompts import NEUTRAL, prompt_set, prompt_sets
from figures.registry import figures
from sasa_theory.concepts import concept
from sasa_theory.concepts.interventions import Part
from sasa_theory.models import SASA, TopK

WIDTH, RANK, VOCABULARY = 40, 2, 1000
PLANES = {"weekday": 0, "month": 1}
TEMPLATES = ("After {word} comes", "It is never {word} but")


class Tokenizer:
    """Whole words; words in `split` are two tokens."""

    def __init__(self, split=()):
        self.names, self.split = [], split

    def __call__(self, text, add_special_tokens=False, verbose=False):
        ids = []
        for name in text.split():
            for piece in (name[:3], name[3:]) if name in self.split else (name,):
                if piece not in self.names:
                    self.names.append(piece)
                ids.append(self.names.index(piece))
        return {"input_ids": ids}

    def decode(self, ids):
        return " ".join(self.names[i] for i in ids)


class PlantedModel:
    """A weekday's or month's state is its place on a circle in its concept's plane, and a direction all words share."""

    prefix, special, width, device, name = (), frozenset(), WIDTH, torch.device("cpu"), "planted"

    def __init__(self, split=()):
        self.tokenizer = Tokenizer(split)
        for of in PLANES:
            self.tokenizer(" ".join(concept(of).words))

    def state(self, word):
        x = torch.zeros(WIDTH)
        x[-1] = 1.0
        for of, plane in PLANES.items():
            if word in concept(of).words:
                x[2 * plane : 2 * plane + 2] = 4 * on_circle(of, word)
                return x
        x[4 + sum(map(ord, word)) % (WIDTH - 8)] = 3.0
        return x

    def run(self, ids, hook):
        return torch.stack([torch.stack([self.state(self.tokenizer.names[int(i)]) for i in row]) for row in ids])

    def activations(self, texts, hook):
        for text in texts:
            ids = torch.tensor(self.tokenizer(text)["input_ids"])
            yield type("Activations", (), {"rows": self.run(ids[None], hook)[0], "tokens": ids})


class PlantedRest:
    """Reads the last token but one: a word after on the circle gets a high logit, in the plane and nowhere else."""

    hook, chunk = "planted", 16

    def __init__(self, model, hook):
        self.model = model

    def finish(self, states):
        return states[:, -2:-1].expand_as(states)

    def logits(self, final):
        names = self.model.tokenizer.names
        out = torch.zeros(len(final), VOCABULARY)
        for of, plane in PLANES.items():
            words = concept(of).words
            for i, word in enumerate(words):
                towards = on_circle(of, word)
                answer = names.index(words[(i + 1) % len(words)])
                out[:, answer] = 3 * final[:, 2 * plane : 2 * plane + 2] @ towards - 2
        return out


def on_circle(of, word):
    words = concept(of).words
    angle = 2 * math.pi * words.index(word) / len(words)
    return torch.tensor([math.cos(angle), math.sin(angle)])


def axes_dictionary(name):
    """Units that are pairs of axes (SASA) or single axes (TopK)."""
    model = (
        SASA(WIDTH, n_groups=WIDTH // RANK, group_rank=RANK, active_groups=2)
        if name == "sasa"
        else TopK(WIDTH, n_latents=WIDTH, active_latents=4)
    )
    with torch.no_grad():
        model.W_dec.copy_(torch.eye(WIDTH))
        model.W_enc.copy_(torch.eye(WIDTH))
    return model


class PlantedStudy:
    def __init__(self, context):
        self.language_model = PlantedModel()
        self.configuration = type(
            "Settings", (), {"middle_l0": 4, "seeds": (0, 1), "hook": "planted", "group_rank": RANK}
        )

    def runs(self, wanted):
        return [type("Run", (), {"model": axes_dictionary(name)}) for name, _, _ in wanted]

    def settings(self):
        return {}


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr("figures.language.study.Study.open", PlantedStudy)
    monkeypatch.setattr(causal, "ARCHITECTURES", ("topk", "sasa"))
    monkeypatch.setattr(causal, "Continuation", PlantedRest)
    monkeypatch.setattr(causal_prompts, "TEMPLATES", dict.fromkeys(PLANES, TEMPLATES))


def test_the_plane_that_makes_the_answer_is_found_removed_restored_and_moved(planted, tmp_path):
    result = figures["causal"].run(Context("quick", (0,), tmp_path))
    json.dumps(result, allow_nan=False)
    numbers = result["numbers"]
    assert numbers["answered"] == numbers["of"] == 2 * 19
    units = {(u["model"], u["units"], u["concept"]): u["chosen"] for u in numbers["units"]}
    assert [units["sasa", "one", of] for of in PLANES] == [[plane] for plane in PLANES.values()]
    entry = {(e["model"], e["units"], e["part"], e["site"]): e for e in numbers["entries"] if e["concept"] == "both"}
    for part in ("contribution", "subspace"):
        for site in ("word", "onward"):
            group = entry["sasa", "one", part, site]
            for key in ("share_class", "share_right", "restored_class", "restored_right", "share_shift"):
                assert group[key]["value"] == pytest.approx(1.0, abs=1e-4), (part, site, key)
            assert group["moved"]["value"] == group["on"] == 1.0
            assert group["rest"]["value"] == pytest.approx(0.0, abs=1e-5)
            assert abs(entry["sasa", "other", part, site]["share_class"]["value"]) < 1e-4
            assert abs(entry["sasa", "runner-up", part, site]["share_class"]["value"]) < 0.2
            noise = [entry["sasa", f"random{size}", part, site]["share_class"]["value"] for size in ("/4", "/2", "")]
            assert -0.01 < noise[0] < noise[-1] < 0.7
    whole, latent = entry["sasa", "all", "contribution", "word"], entry["topk", "one", "contribution", "word"]
    assert whole["share_shift"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert latent["share_shift"]["value"] < 0.7, "one direction cannot turn a circle"
    assert causal.findings(result["numbers"])[0]["status"] == "supported"
    for stem, picture in figures["causal"].draw(result).items():
        picture.savefig(tmp_path / f"{stem}.png", dpi=40)
        assert (tmp_path / f"{stem}.png").stat().st_size > 10_000


def test_a_group_that_is_not_used_is_no_support(planted, tmp_path, monkeypatch):
    """The model now reads a copy of the circle that no group detects it by."""

    original = PlantedModel.state

    def state(self, word):
        x = original(self, word)
        x[-5:-1] = x[:4] / 8  # too small to be on, and all that is read
        return x

    monkeypatch.setattr(PlantedModel, "state", state)
    monkeypatch.setattr(
        PlantedRest, "finish", lambda self, states: 8 * states[:, -2:-1, -5:].expand(-1, states.shape[1], -1)
    )
    result = figures["causal"].run(Context("quick", (0,), tmp_path))
    group = next(
        e
        for e in result["numbers"]["entries"]
        if (e["concept"], e["model"], e["units"], e["part"], e["site"]) == ("both", "sasa", "one", "subspace", "word")
    )
    assert group["share_class"]["value"] == pytest.approx(0.0, abs=1e-4)
    assert causal.findings(result["numbers"])[0]["status"] == "refuted"


def test_words_that_cannot_be_exchanged_are_left_out_and_named(monkeypatch):
    model = PlantedModel(split=("Friday",))
    found = prompt_set(model, "weekday", TEMPLATES[0])
    assert found.left_out == {"Friday": "it is not one token there"}
    assert found.words == ("Monday", "Tuesday", "Wednesday", "Thursday", "Saturday", "Sunday")
    names = model.tokenizer.names
    assert [names[i] for i in found.answers] == ["Tuesday", "Wednesday", "Thursday", "Fri", "Sunday", "Monday"]
    assert (found.classes[found.right] == found.answers).all()
    differ = (found.ids != found.ids[0]).any(dim=0).nonzero().flatten().tolist()
    assert differ == [found.place] and len(found.neutral) == len(NEUTRAL)
    assert prompt_set(PlantedModel(split=NEUTRAL), "weekday", TEMPLATES[0]) is None
    sets, missing = prompt_sets(PlantedModel(split=concept("weekday").words), ("weekday",))
    assert sets == [] and "too few words" in missing[0]
    monkeypatch.setattr(causal, "Continuation", PlantedRest)
    silent = PlantedModel(split=(*concept("weekday").words, *concept("month").words))
    numbers = causal.measure(silent, "planted", {"sasa": [axes_dictionary("sasa")]}, RANK, np.random.default_rng(0))
    assert (numbers["entries"], numbers["of"]) == ([], 0) and len(numbers["missing"]) == 6
    assert causal.findings(numbers)[0]["status"] == "undecided"
    assert len(causal.tables(numbers)) == 1 and set(causal.draw({"numbers": numbers})) == {"figure"}


def test_replacing_a_part_by_its_own_changes_nothing(planted):
    model = PlantedModel()
    scene = Scene(PlantedRest(model, "planted"), prompt_set(model, "weekday", TEMPLATES[0]))
    scene.moves = lambda: iter([scene.everyone])
    still = effects(scene, "word", Part(axes_dictionary("sasa"), (0,), "subspace"))["move"]
    assert np.abs(still["shift"]).max() < 1e-5 and still["moved"].all()
