"""Training straight from a language model: streams resume exactly, read no text twice, and share out the rows."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasa_theory.activations import LiveActivations
from synthetic.errors import UsageError
from synthetic.source import Dataset, Source

pytestmark = pytest.mark.lm


@given(st.integers(1, 40), st.integers(0, 30), st.sampled_from(["train", "eval", "train:2"]))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_streams_resume_exactly(models, sentences, size, before, stream):
    data = LiveActivations(models["mistral"], sentences(7, 80), "blocks.2.hook_resid_pre", block=10)
    assert isinstance(data, Dataset)
    straight = data.batches(size, stream=stream)
    assert isinstance(straight, Source)
    for _ in range(before):
        next(straight)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = data.batches(size, stream=stream)
    resumed.load_state_dict(state)
    for _ in range(10):
        assert torch.equal(next(straight), next(resumed))


def test_a_live_stream_resumes_without_tokenising_the_text_before(counted, sentences):
    lm, tokenizer = counted
    texts = sentences(7, 400)
    data = LiveActivations(lm, texts, "blocks.1.hook_resid_pre", block=10, norm_limit=None)
    straight = data.batches(16)
    for _ in range(200):
        next(straight)
    state = json.loads(json.dumps(straight.state_dict()))
    assert state["epoch"] == 0 and state["block"] > 20
    old = {key: value for key, value in state.items() if key != "place"}  # as checkpoints were before they had one
    taken = {}
    for name, one in (("place", state), ("old", old)):
        resumed = data.batches(16)
        resumed.load_state_dict(one)
        tokenizer.characters = 0
        first = next(resumed)
        taken[name] = tokenizer.characters
        rest = [next(resumed) for _ in range(400)]  # over the end of the text
        if name == "place":
            expected = [next(straight) for _ in range(401)]
        assert all(torch.equal(a, b) for a, b in zip([first, *rest], expected, strict=True))
    assert resumed.state_dict()["epoch"] == 1
    longest = max(map(len, texts))
    assert taken["place"] < 12 * longest < 0.4 * sum(map(len, texts)) < taken["old"]


def test_live_streams_share_out_the_rows(models, sentences):
    lm, texts, hook = models["mistral"], sentences(8, 100), "blocks.1.hook_resid_pre"
    data = LiveActivations(lm, texts, hook, block=7)
    direct = torch.cat([one.rows[~torch.isin(one.tokens, torch.tensor(sorted(lm.special)))]
                        for one in lm.activations(texts, hook)])  # fmt: skip
    found = {}
    for name in ("train", "eval"):
        stream, rows = data.batches(1, stream=name), []
        while not rows or stream.state_dict()["epoch"] == 0:
            rows.append(next(stream))
        found[name] = torch.cat(rows[:-1])
    together = torch.cat(list(found.values()))

    def in_order(x):
        return x[np.lexsort(x.numpy().T.round(3))]

    assert together.shape == direct.shape
    torch.testing.assert_close(in_order(together).sum(0), in_order(direct).sum(0), rtol=1e-4, atol=1e-3)
    assert 0.01 < len(found["eval"]) / len(direct) < 0.1
    with pytest.raises(UsageError, match="take smaller batches"):
        next(data.batches(1000, stream="eval"))
    batches = lm.batches(8, texts=texts, hook=hook)
    assert torch.equal(next(batches), next(LiveActivations(lm, texts, hook).batches(8)))
