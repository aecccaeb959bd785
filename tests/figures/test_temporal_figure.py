"""Figure E6 on planted states: a circle that is there is found in the right group; no circle, no finding."""

import json

import numpy as np
import pytest
import torch

import figures.temporal as e6
from figures import Context
from figures.registry import figures
from sasa_theory import saelens
from sasa_theory.concepts import concept, templates
from sasa_theory.models import SASA, TopK
from synthetic.errors import UsageError

WIDTH, BLOCKS = 24, 3


class PlantedModel:
    """Stands in for a language model: weekdays and months are circles in two planes, templates add their own vector."""

    n_blocks, prefix, width = BLOCKS, (0,), WIDTH

    def __init__(self, shuffled: bool) -> None:
        rng = np.random.default_rng(0)
        self.frame = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
        self.template = {t: rng.standard_normal() * 3 for t in (*templates(), *concept("year").templates)}
        self.order = {
            name: rng.permutation(len(concept(name).words)) if shuffled else np.arange(len(concept(name).words))
            for name in e6.CONCEPTS
        }

    def _word(self, text: str) -> np.ndarray:
        state = np.zeros(WIDTH)
        for template, size in self.template.items():
            head = template.removesuffix("{word}")
            if text.startswith(head):
                state += size * self.frame[8]
                for plane, name in enumerate(e6.CONCEPTS):
                    words = concept(name).words
                    if text[len(head) :] in words:
                        turn = 2 * np.pi * self.order[name][words.index(text[len(head) :])] / len(words)
                        state += 10 * (np.cos(turn) * self.frame[2 * plane] + np.sin(turn) * self.frame[2 * plane + 1])
                if text[len(head) :] in concept("year").words:
                    state += 10 * self.frame[4]
                return state
        return state

    def last_states(self, texts):
        states = torch.tensor(np.stack([self._word(t) for t in texts]), dtype=torch.float32)
        return states[:, None].expand(-1, BLOCKS, -1)

    def activations(self, texts, hook):
        for text in texts:
            rows = torch.tensor(np.stack([self.frame[9] * 50, self.frame[10], self._word(text)]), dtype=torch.float32)
            yield type("Activations", (), {"rows": rows, "tokens": torch.arange(3)})

    class tokenizer:
        """Names the three tokens of every text."""

        @staticmethod
        def decode(ids):
            return ("<bos>", " $a", " word")[ids[0]]


def checkpoints(model: PlantedModel, out):
    """A SASA with one group per circle, and a TopK with one latent per direction."""
    sasa = SASA(width_in=WIDTH, n_groups=6, group_rank=2, active_groups=1)
    topk = TopK(width_in=WIDTH, n_latents=12, active_latents=2)
    rows = torch.tensor(model.frame[:12], dtype=torch.float32)
    with torch.no_grad():
        for dictionary in (sasa, topk):
            dictionary.W_dec.copy_(rows)
            dictionary.W_enc.copy_(rows.T)
        # the word must win the gate against its template
        sasa.W_enc[:, 8:] *= 0.1
    saelens.save(sasa, out / "sasa")
    saelens.save(topk, out / "topk")
    return {"sasa": str(out / "sasa"), "topk": str(out / "topk"), "hook": "blocks.1.hook_resid_pre"}


@pytest.mark.parametrize("shuffled", [False, True])
def test_planted_circles(tmp_path, monkeypatch, shuffled):
    model = PlantedModel(shuffled)
    monkeypatch.setattr("sasa_theory.activations.LanguageModel", lambda *_, **__: model)
    result = figures["temporal"].run(Context("quick", (0,), tmp_path, options=checkpoints(model, tmp_path)))
    result = json.loads(json.dumps(result, allow_nan=False))
    weekday = result["numbers"]["dictionaries"]["sasa"]["weekday"]
    assert weekday["unit"] == 0
    assert weekday["f1"] == 1.0
    assert result["numbers"]["dictionaries"]["sasa"]["month"]["unit"] == 1
    if shuffled:
        assert weekday["ring"]["r2"] < 0.95
    else:
        assert weekday["ring"]["r2"] > 0.99
        assert result["findings"][0]["status"] == "supported"
        assert result["numbers"]["dictionaries"]["topk"]["weekday"]["f1"] < 1.0
    # years fire on a group of their own here, so the group for all dates knows only its own category
    group = result["numbers"]["group"]
    assert group["unit"] in (0, 1)
    own = ("weekday", "month")[group["unit"]]
    assert group["auc"][own] == 1.0
    assert group["auc"]["year"] == 0.5
    assert group["firing_share"] == {name: float(name == own) for name in ("weekday", "month", "year")}
    assert sum(group["components"]["shares"]) == pytest.approx(1)
    assert len(group["components"]["points"][own]["words"]) == len(concept(own).words)
    assert [profile["tokens"] for profile in result["numbers"]["profiles"]] == [[" $a", " word"]] * 3
    for name, picture in figures["temporal"].draw(result).items():
        picture.savefig(tmp_path / f"{name}.png")


def test_output_of_a_block_is_the_input_of_the_next():
    assert e6._block("blocks.1.hook_resid_post", 3) == e6._block("blocks.2.hook_resid_pre", 3) == 2
    with pytest.raises(UsageError, match="is not one of"):
        e6._block("blocks.2.hook_resid_post", 3)


def test_missing_checkpoints_and_wrong_widths_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--option sasa=CHECKPOINT and --option topk=CHECKPOINT"):
        e6.run(Context("quick", (0,), tmp_path))
    model = PlantedModel(False)
    monkeypatch.setattr("sasa_theory.activations.LanguageModel", lambda *_, **__: model)
    options = checkpoints(model, tmp_path)
    with pytest.raises(UsageError, match="is not one of"):
        e6.run(Context("quick", (0,), tmp_path, options={**options, "hook": "blocks.9.hook_resid_pre"}))
    saelens.save(TopK(width_in=7, n_latents=12, active_latents=2), tmp_path / "narrow")
    with pytest.raises(UsageError, match="width 7"):
        e6.run(Context("quick", (0,), tmp_path, options={**options, "topk": str(tmp_path / "narrow")}))
