"""Figures `concepts` and `feature-clusters` on planted activations where the right units are known."""

import json
import math

import numpy as np
import pytest
import torch

import figures.language.concepts as concepts_figure
from figures import Context
from figures.language import feature_clusters
from figures.language.configuration import Configuration
from figures.language.held_out import held_out, with_words
from figures.registry import figures
from sasa_theory.activations.gather import TokenFilter
from sasa_theory.activations.language_model import Context as TextContext
from sasa_theory.concepts import CONCEPTS, concept
from sasa_theory.models import SASA, TopK

WIDTH, RANK, LENGTH = 64, 4, 24
#: words in the made-up text: each concept's first few, and others
LEXICON = {name: [w for w in concept(name).words if w not in concept(name).ambiguous][:4] for name in CONCEPTS}
FILLER = [f"w{i}" for i in range(30)]


class Tokenizer:
    """Whole words."""

    def __init__(self):
        self.names = []

    def __call__(self, text, add_special_tokens=False):
        ids = []
        for name in text.split():
            if name not in self.names:
                self.names.append(name)
            ids.append(self.names.index(name))
        return {"input_ids": ids}

    def decode(self, ids):
        return " ".join(self.names[i] for i in ids)


class PlantedModel:
    """A state is its word's own direction inside its concept's four dimensions, or one of the fillers'."""

    prefix, special, width = (), frozenset(), WIDTH

    def __init__(self):
        rng = np.random.default_rng(0)
        self.tokenizer = Tokenizer()
        self.frame = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
        self.noise = np.random.default_rng(1)

    def state(self, word):
        x = 0.01 * self.noise.standard_normal(WIDTH)
        for i, name in enumerate(CONCEPTS):
            words = concept(name).words
            if word in words or word in concept(name).text_words:
                place = words.index(word) if word in words else int(word)
                return x + 5 * self.frame[RANK * i + place % RANK]
        return x + 3 * self.frame[RANK * len(CONCEPTS) + len(word) % 8]

    def states(self, ids):
        return torch.tensor(np.stack([self.state(self.tokenizer.names[i]) for i in ids]), dtype=torch.float32)

    def contexts(self, texts):
        for document, text in enumerate(texts):
            ids = torch.tensor(self.tokenizer(text)["input_ids"])
            yield TextContext(document, document // 2, ids)

    def run_contexts(self, contexts, hook, batch_tokens=0):
        return [self.states(item.ids.tolist()) for item in contexts]

    def activations(self, texts, hook):
        for text in texts:
            ids = self.tokenizer(text)["input_ids"]
            yield type("Activations", (), {"rows": self.states(ids), "tokens": torch.tensor(ids)})


class PlantedStudy:
    """What the figures ask of a study, with one seed and two architectures."""

    def __init__(self, context):
        self.context = context
        self.language_model = PlantedModel()
        rng = np.random.default_rng(2)
        rare = [word for words in LEXICON.values() for word in words]
        # held out is every 20th context
        self.texts = [
            " ".join(rng.choice(FILLER if i % 20 != 19 else FILLER + rare, LENGTH).tolist()) for i in range(4000)
        ]
        self.configuration = Configuration(
            name="planted",
            title="",
            model="planted",
            hook="blocks.0.hook_resid_pre",
            columns=WIDTH,
            group_rank=RANK,
            l0=(RANK,),
            train_tokens=4096,
            tokens=0,
            stored=False,
            norm_limit=None,
            seeds=(0,),
            evaluation_tokens=2400,
        )

    is_stored = False

    def ordinary(self):
        return TokenFilter(torch.tensor(sorted(self.language_model.special)), math.inf)

    def eval_contexts(self, tokens):
        held = [item for item in self.language_model.contexts(self.texts) if item.number % 20 == 19]
        return held[: -(-tokens // LENGTH)]

    def runs(self, wanted):
        rows = torch.tensor(self.language_model.frame, dtype=torch.float32)
        made = []
        for name, _, _ in wanted:
            model = (
                SASA(WIDTH, n_groups=WIDTH // RANK, group_rank=RANK, active_groups=1)
                if name == "sasa"
                else TopK(WIDTH, n_latents=WIDTH, active_latents=1)
            )
            with torch.no_grad():
                model.W_dec.copy_(rows)
                model.W_enc.copy_(rows.T)
            made.append(type("Run", (), {"model": model}))
        return made

    def settings(self):
        return {}


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr("figures.language.study.Study.open", PlantedStudy)
    for module in (concepts_figure, feature_clusters):
        monkeypatch.setattr(module, "ARCHITECTURES", ("topk", "sasa"))


def run(name, tmp_path):
    result = figures[name].run(Context("standard", (0,), tmp_path))
    for stem, picture in figures[name].draw(result).items():
        picture.savefig(tmp_path / f"{stem}.png")
    return json.loads(json.dumps(result, allow_nan=False))


def test_groups_hold_whole_concepts_and_latents_hold_words(tmp_path, planted):
    numbers = run("concepts", tmp_path)["numbers"]
    judged = {(e["place"], e["concept"], e["architecture"], e["kind"]): e for e in numbers["results"]}
    assert not numbers["skipped"]["templates"]
    for place in ("text", "templates"):
        for name in CONCEPTS:
            if name in numbers["skipped"][place]:
                continue
            assert judged[place, name, "sasa", "one"]["units"] == [[CONCEPTS.index(name)]]
            assert judged[place, name, "sasa", "one"]["f1"]["value"] > 0.95
            assert judged[place, name, "topk", "one"]["f1"]["value"] < 0.8
            assert set(judged[place, name, "topk", "several"]["units"][0]) <= {
                RANK * CONCEPTS.index(name) + i for i in range(RANK)
            }
            assert judged[place, name, "topk", "several"]["auc"]["value"] > 0.95
    lead = {(d["place"], d["kind"], d["metric"]): d for d in numbers["differences"]}
    assert lead["text", "one", "f1"]["interval"][0] > 0
    assert lead["text", "one", "f1"]["won"] == lead["text", "one", "f1"]["concepts"] >= 7
    assert abs(lead["text", "several", "f1"]["value"]) < 0.05


def test_finding_says_what_the_lead_rests_on():
    def rows(one, several):
        return [
            {"place": "text", "metric": "f1", "baseline": "topk", "kind": kind, "value": sum(bounds) / 2}
            | {"interval": bounds, "concepts": 9}
            for kind, bounds in (("one", one), ("several", several))
        ]

    ahead, level, behind = (0.1, 0.3), (-0.1, 0.1), (-0.3, -0.1)
    for one, several, status in [
        (ahead, ahead, "supported"),
        (ahead, level, "needs an assumption"),
        (ahead, behind, "needs an assumption"),
        (level, behind, "undecided"),
        (behind, behind, "refuted"),
    ]:
        assert concepts_figure.findings(rows(one, several), 4)[0]["status"] == status
    assert concepts_figure.findings([], 4)[0]["status"] == "undecided"


def test_units_behind_a_concept_and_redundant_directions(tmp_path, planted):
    numbers = run("feature-clusters", tmp_path)["numbers"]
    masses = {(m["architecture"], m["concept"], m["kind"], m["share"]): m["units"] for m in numbers["masses"]}
    for name in numbers["concepts"]:
        assert masses["sasa", name, "excess", 0.9] == 1
        assert masses["topk", name, "excess", 0.9] > 1
    # both dictionaries are one orthonormal basis: no direction is redundant, as with random ones
    for row in numbers["clusters"]:
        assert row["ratio"] < 1.5


def test_contexts_with_words_are_held_out_and_new(tmp_path, monkeypatch):
    study = PlantedStudy(Context("standard", (0,), tmp_path))
    seen = held_out(study, 480)
    assert len(seen) == 480
    assert (seen.contexts % 20 == 19).all()
    more = with_words(study, [concept("weekday")], 30, seen)
    assert not set(more.contexts) & set(seen.contexts)
    assert (more.contexts % 20 == 19).all()
    monkeypatch.setattr("figures.language.held_out.RUN", 3)  # rows come from disk in the order they were run
    in_pieces = with_words(study, [concept("weekday")], 30, seen)
    assert np.array_equal(in_pieces.tokens, more.tokens) and len(np.unique(more.contexts)) > 6
    both = (torch.cat(list(one.parts())) for one in (in_pieces, more))
    torch.testing.assert_close(*both, rtol=0, atol=0.1)  # states carry noise of 0.01, drawn anew
    assert not list(tmp_path.iterdir())
    whole = seen.and_then(more)
    parts = torch.cat(list(whole.parts()))
    assert parts.shape == (len(seen) + len(more), WIDTH)
    monday = study.language_model.tokenizer.names.index("Monday")
    at = int(np.flatnonzero(whole.tokens == monday)[-1])
    assert float(parts[at] @ torch.tensor(study.language_model.frame[0], dtype=torch.float32)) > 4
