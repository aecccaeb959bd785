"""Hooks and contexts, on tiny random models (no hub)."""

import itertools
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sasa_theory.activations import ActivationStore, LanguageModel, LiveActivations, write_activations
from synthetic.errors import UsageError

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral", "gemma3")
CONTEXT = 12


def count_hooks(lm):
    return [(len(block._forward_hooks), len(block._forward_pre_hooks)) for block in lm.blocks]


# ---- hooks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 10**6))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hooks_equal_output_hidden_states_exactly(models, kind, batch, length, seed):
    lm = models[kind]
    ids = torch.randint(63, (batch, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        states = lm.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    hooks = count_hooks(lm)  # transformers has some of its own
    norm = lm.model.ln_f if kind == "gpt2" else lm.model.norm
    for i in range(lm.n_blocks):
        assert torch.equal(lm.run(ids, f"blocks.{i}.hook_resid_pre"), states[i])
        post = lm.run(ids, f"blocks.{i}.hook_resid_post")
        if i + 1 < lm.n_blocks:
            assert torch.equal(post, states[i + 1])
        else:  # the last hidden state has gone through the final norm
            assert torch.equal(norm(post), states[i + 1])
            assert not torch.equal(post, states[i + 1])
    assert count_hooks(lm) == hooks


@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_ends_at_the_hook_and_there_is_no_head(models, kind):
    lm = models[kind]
    called = []
    handles = [block.register_forward_pre_hook(lambda *_, i=i: called.append(i)) for i, block in enumerate(lm.blocks)]
    lm.run(torch.ones(1, 3, dtype=torch.long), "blocks.1.hook_resid_pre")
    for handle in handles:
        handle.remove()
    assert called == [0, 1]
    assert not any("head" in name for name, _ in lm.model.named_modules())


def test_hooks_are_removed_after_an_error(models):
    lm = models["mistral"]
    hooks = count_hooks(lm)
    for hook in ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"):
        with pytest.raises(IndexError):
            lm.run(torch.full((1, 3), 9999), hook)
    assert count_hooks(lm) == hooks


# ---- contexts and rows of texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 200))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_texts_equal_one_by_one_runs(models, sentences, kind, seed, n, batch_tokens):
    """Documents never see each other: each context run alone gives the same rows, to rounding."""
    lm, texts = models[kind], sentences(seed, n)
    hook = "blocks.2.hook_resid_pre"
    found = list(lm.activations(texts, hook, batch_tokens=batch_tokens))
    assert len(found) == n
    for text, one in zip(texts, found, strict=True):
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = CONTEXT - len(lm.prefix)
        chunks = [[*lm.prefix, *ids[i : i + room]] for i in range(0, len(ids), room)]
        assert one.tokens.tolist() == list(itertools.chain(*chunks))
        assert one.positions.tolist() == list(itertools.chain(*(range(len(chunk)) for chunk in chunks)))
        alone = torch.cat([lm.run(torch.tensor([chunk]), hook)[0] for chunk in chunks])
        torch.testing.assert_close(one.rows, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_last_states_are_every_hook_at_the_last_token(models, kind, sentences):
    lm = models[kind]
    texts = sentences(3, 7, longest=12)
    states = lm.last_states(texts)
    for block in range(lm.n_blocks):
        one_by_one = [text.rows[-1] for text in lm.activations(texts, f"blocks.{block}.hook_resid_pre")]
        torch.testing.assert_close(states[:, block], torch.stack(one_by_one), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="every text must have"):
        lm.last_states([texts[0], ""])


def test_prefix_is_what_the_tokenizer_puts_in_front(models):
    assert (models["gpt2"].prefix, models["mistral"].prefix, models["gemma3"].prefix) == ((), (0,), (0,))


def test_long_texts_are_tokenised_in_pieces_without_loss(models, monkeypatch, sentences):
    text = "\n".join(sentences(1, 50))

    def token_ids(text):
        return [token_id for *_, token_id in models["gpt2"]._tokens(text)]

    whole = token_ids(text)
    monkeypatch.setattr("sasa_theory.activations.language_model.PIECE", 97)
    assert token_ids(text) == whole
    assert token_ids("w1" + " " * 500 + "w2") == token_ids("w1 w2")


def test_contexts_begin_at_any_place_without_tokenising_what_comes_before(counted, sentences):
    lm, tokenizer = counted
    texts = [*sentences(1, 30, longest=90), "", "\n".join(sentences(2, 30))]
    straight = list(lm.contexts(texts))
    assert {item.place.character for item in straight} != {0}  # documents of several pieces
    for k, item in enumerate(straight):
        tokenizer.characters = 0
        again = list(lm.contexts(texts, item.place))
        rest = len(texts[item.document]) - item.place.character + sum(map(len, texts[item.document + 1 :]))
        assert tokenizer.characters == rest
        assert [(c.number, c.document, c.place) for c in again] == [
            (c.number, c.document, c.place) for c in straight[k:]
        ]
        assert all(torch.equal(one.ids, other.ids) for one, other in zip(again, straight[k:], strict=True))


def test_bos_is_put_in_front_where_the_tokenizer_puts_none(directories, models, tmp_path):
    """GPT-2's contexts then begin with BOS, as E4 has them; a tokenizer's own BOS does not come twice."""
    hook, texts = "blocks.1.hook_resid_pre", ["w1 w2 w3"]
    lm = LanguageModel(directories["gpt2"], context=CONTEXT, prepend_bos=True)
    bos = lm.tokenizer.bos_token_id
    assert models["gpt2"].prefix == () and lm.prefix == (bos,)
    (with_bos,), (without,) = lm.activations(texts, hook), models["gpt2"].activations(texts, hook)
    assert with_bos.tokens.tolist() == [bos, *without.tokens.tolist()]
    assert not torch.allclose(with_bos.rows[1:], without.rows)  # positions and what is attended to differ
    mistral = LanguageModel(directories["mistral"], context=CONTEXT, prepend_bos=True)
    assert mistral.prefix == models["mistral"].prefix == (mistral.tokenizer.bos_token_id,)

    long = [" ".join(["w4"] * 40)]
    named = [LiveActivations(model, long, hook).fingerprint() for model in (lm, models["gpt2"])]
    assert named[0] != named[1]
    for model, meta in ((lm, True), (models["gpt2"], None)):
        write_activations(model, hook, long, tmp_path / str(meta), 20, norm_limit=None, progress=False)
        assert ActivationStore(tmp_path / str(meta)).meta.get("prepend_bos") is meta
    with pytest.raises(UsageError, match="begun with prepend_bos = None, not True"):
        write_activations(lm, hook, long, tmp_path / "None", 30, norm_limit=None, progress=False)

    bare = tmp_path / "bare"
    shutil.copytree(directories["gpt2"], bare)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "bos_token"}))
    with pytest.raises(UsageError, match="has no BOS token"):
        LanguageModel(bare, prepend_bos=True, context=CONTEXT)


def test_bad_requests_are_usage_errors(directories, models, tmp_path):
    lm = models["gpt2"]
    with pytest.raises(UsageError, match=r"has 3 blocks, 0 to 2"):
        lm.find_hook("blocks.3.hook_resid_pre")
    with pytest.raises(UsageError, match=r"unknown hook 'blocks.1.resid_pre'; did you mean 'blocks"):
        lm.find_hook("blocks.1.resid_pre")
    with pytest.raises(UsageError, match="takes from 1 to 32 tokens"):
        LanguageModel(directories["gpt2"], context=33)
    with pytest.raises(UsageError, match="takes from 2 to 32 tokens"):
        LanguageModel(directories["mistral"], context=1)
    with pytest.raises(UsageError, match="no language model could be loaded from"):
        LanguageModel(tmp_path)
    torn = tmp_path / "torn"
    shutil.copytree(directories["mistral"], torn)
    weights = load_file(torn / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.1.mlp" not in k}, torn / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UsageError, match=r"lacks the weights layers.1.mlp"):
        LanguageModel(torn)
    with pytest.raises(UsageError, match="one string"):
        list(lm.activations("hello", "blocks.1.hook_resid_pre"))
    with pytest.raises(UsageError, match="has no tokens"):
        list(lm.activations(["w1", ""], "blocks.1.hook_resid_pre"))
