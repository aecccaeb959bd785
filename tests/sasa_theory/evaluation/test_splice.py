"""Scores of spliced-in dictionaries on tiny random models: known dictionaries, and the definition written out."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasa_theory.activations import ActivationStore, LanguageModel, write_activations
from sasa_theory.activations.gather import TokenFilter
from sasa_theory.evaluation.splice import ordinary_tokens, splice_scores
from sasa_theory.models import build
from synthetic.errors import DataError, UsageError

pytestmark = pytest.mark.lm

HOOK, CONTEXT = "blocks.1.hook_resid_pre", 12


KINDS = ("gpt2", "mistral", "gemma3")


@pytest.fixture(scope="session")
def loaded(tmp_path_factory, tiny_language_model):
    """kind -> (LanguageModel, whole causal model)."""
    import transformers as hf

    out = {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp(f"splice-{kind}")
        tiny_language_model(kind, directory)
        whole = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        out[kind] = LanguageModel(directory, context=CONTEXT), whole
    return out


class Fixed(torch.nn.Module):
    """A dictionary that is any function of the states."""

    def __init__(self, function, width=16):
        super().__init__()
        self.function, self.width_in = function, width

    def reconstruct(self, x):
        return self.function(x), None


def sentences(seed, n):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(60, size=rng.integers(1, 40))) for _ in range(n)]


def contexts_of(lm, seed=0, n=6):
    return list(lm.contexts(sentences(seed, n)))


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 60))
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_perfect_and_zero_dictionaries(loaded, kind, seed, n, batch_tokens):
    lm, _ = loaded[kind]
    contexts = contexts_of(lm, seed, n)
    known = {"identity": Fixed(lambda x: x), "zero": Fixed(torch.zeros_like)}
    if not any(len(item.ids) > len(lm.prefix) + 1 for item in contexts):
        with pytest.raises(DataError, match="nothing to splice"):
            splice_scores(lm, HOOK, contexts, known)
        return
    found = splice_scores(lm, HOOK, contexts, known, batch_tokens=batch_tokens)
    perfect, zero = found["identity"], found["zero"]
    assert (perfect.ce_score, perfect.kl_score, perfect.kl) == (1.0, 1.0, 0.0)
    assert np.array_equal(perfect.tokens.spliced, perfect.tokens.clean) and not perfect.tokens.kl.any()
    assert (zero.ce_score, zero.kl_score) == (0.0, 0.0) and zero.kl == zero.kl_zero > 0
    ordinary = sum(len(item.ids) - len(lm.prefix) for item in contexts)
    assert perfect.replaced == ordinary and sum(perfect.left.values()) == len(contexts) * len(lm.prefix)
    assert perfect.predictions == sum(len(item.ids) - len(lm.prefix) - 1 for item in contexts)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_their_definition_with_hooks_in_the_whole_model(loaded, kind):
    lm, whole = loaded[kind]
    contexts = contexts_of(lm, 3, 8)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(16, 16, generator=generator)
    found = splice_scores(lm, HOOK, contexts, {"map": Fixed(lambda x: x @ weights)}, batch_tokens=30)["map"]
    module = whole.base_model.get_submodule("h" if kind == "gpt2" else "layers")[1]
    states = [lm.run(item.ids[None], HOOK)[0] for item in contexts]
    special = torch.tensor(sorted(lm.special))
    mean = torch.cat([x[~torch.isin(c.ids, special)] for x, c in zip(states, contexts, strict=True)]).mean(0)
    changes = {
        "clean": lambda x: x,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
        "spliced": lambda x: x @ weights,
    }
    loss, kl = dict.fromkeys(changes, 0.0), dict.fromkeys(changes, 0.0)
    count = 0
    for item in contexts:
        on = ~torch.isin(item.ids, special)
        log_p = {}
        for name, change in changes.items():

            def put(_, args, change=change, on=on):
                return (torch.where(on[:, None], change(args[0]), args[0]), *args[1:])

            handle = module.register_forward_pre_hook(put)
            with torch.no_grad():
                log_p[name] = torch.log_softmax(whole(item.ids[None]).logits[0].double(), -1)[len(lm.prefix) : -1]
            handle.remove()
            targets = item.ids[len(lm.prefix) + 1 :]
            loss[name] -= float(log_p[name][torch.arange(len(targets)), targets].sum())
            kl[name] += float((log_p["clean"].exp() * (log_p["clean"] - log_p[name])).sum())
        count += len(targets)
    near = lambda value: pytest.approx(value, rel=1e-4, abs=1e-5)  # noqa: E731
    assert found.predictions == count
    assert found.ce_score == near((loss["zero"] - loss["spliced"]) / (loss["zero"] - loss["clean"]))
    assert found.ce_score_mean == near((loss["mean"] - loss["spliced"]) / (loss["mean"] - loss["clean"]))
    assert found.kl_score == near(1 - kl["spliced"] / kl["zero"])
    assert found.kl_score_mean == near(1 - kl["spliced"] / kl["mean"])
    for name in changes:
        assert getattr(found, f"loss_{name}") == near(loss[name] / count)


def test_left_out_tokens_keep_their_state_and_are_counted(loaded):
    lm, _ = loaded["gemma3"]
    contexts = contexts_of(lm, 5, 8)
    norms = torch.cat([lm.run(item.ids[None], HOOK)[0, 1:].norm(dim=1) for item in contexts])
    limit = float(norms.quantile(0.8))
    seen = []

    def see(rows):
        seen.append(rows.norm(dim=1))
        return rows

    ordinary = TokenFilter(torch.tensor(sorted(lm.special)), limit)
    found = splice_scores(lm, HOOK, contexts, {"see": Fixed(see)}, ordinary=ordinary)["see"]
    assert float(torch.cat(seen).max()) <= limit
    assert found.left == {"special": len(contexts), "norm": int((norms > limit).sum())}
    assert found.replaced == int((norms <= limit).sum()) == len(torch.cat(seen))


def test_the_filter_is_that_of_the_store(loaded, tmp_path):
    lm, _ = loaded["mistral"]
    write_activations(lm, HOOK, sentences(2, 60), tmp_path / "s", 300, norm_limit=2.0, progress=False)
    store = ActivationStore(tmp_path / "s")
    chosen = ordinary_tokens(lm, store)
    assert chosen.largest == 2.0 * store.manifest.notes["median_norm"] and not chosen.keep_special
    assert chosen.special.tolist() == sorted(lm.special)
    assert ordinary_tokens(lm).largest == float("inf")


def test_real_dictionaries_share_passes(loaded):
    """Several at once give what each gives alone, and intervals hold the score of a model between 0 and 1."""
    lm, _ = loaded["gpt2"]
    contexts = contexts_of(lm, 7, 30)
    models = {}
    for seed in range(2):
        models[str(seed)] = model = build("topk", width_in=16, n_latents=24, active_latents=4)
        model.initialise(torch.Generator().manual_seed(seed))
    together = splice_scores(lm, HOOK, contexts, models)
    for name, model in models.items():
        alone = splice_scores(lm, HOOK, contexts, {name: model})[name]
        assert (alone.ce_score, alone.kl_score) == (together[name].ce_score, together[name].kl_score)
        low, high = together[name].kl_interval
        assert low < together[name].kl_score < high


def test_bad_requests(loaded):
    lm, _ = loaded["gpt2"]
    contexts = contexts_of(lm)
    with pytest.raises(UsageError, match="needs contexts and dictionaries"):
        splice_scores(lm, HOOK, [], {"a": Fixed(lambda x: x)})
    with pytest.raises(UsageError, match="has width 8"):
        splice_scores(lm, HOOK, contexts, {"a": Fixed(lambda x: x, width=8)})
    with pytest.raises(DataError, match="reconstructs some states as NaN"):
        splice_scores(lm, HOOK, contexts, {"a": Fixed(lambda x: x * float("nan"))})
