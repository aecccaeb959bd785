"""The rest of a forward pass equals the whole pass of the untouched causal model, on tiny random models."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasa_theory.activations import LanguageModel
from sasa_theory.activations.continuation import Continuation
from synthetic.errors import UsageError

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral", "gemma3", "gemma2")
CONTEXT, VOCABULARY = 12, 63


@pytest.fixture(scope="session")
def loaded(tmp_path_factory, tiny_language_model):
    """kind -> (LanguageModel, the whole causal model); Gemma 2 has softcapped logits, Mistral an untied head."""
    import transformers as hf

    out = {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp(f"continuation-{kind}")
        tiny_language_model(kind if kind != "gemma2" else "gemma3", directory)
        if kind == "gemma2":
            torch.manual_seed(5)
            config = hf.Gemma2Config(
                vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=4, sliding_window=8, max_position_embeddings=32,
                query_pre_attn_scalar=4, final_logit_softcapping=0.5, pad_token_id=1,
            )  # fmt: skip
            hf.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        whole = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        out[kind] = LanguageModel(directory, context=CONTEXT), whole
    return out


def hooks_of(lm):
    return [f"blocks.{i}.hook_resid_{side}" for i in range(lm.n_blocks) for side in ("pre", "post")]


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 10**6), st.integers(0, 5))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_going_on_from_a_hook_equals_the_whole_pass(loaded, kind, batch, length, seed, place):
    lm, whole = loaded[kind]
    ids = torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = whole(input_ids=ids, use_cache=False).logits.float()
    rest = Continuation(lm, hooks_of(lm)[place])
    final = rest.finish(lm.run(ids, rest.hook))
    torch.testing.assert_close(rest.logits(final.flatten(0, 1)), expected.flatten(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 2, 5])
def test_changed_states_equal_a_pass_changed_at_the_hook(loaded, kind, place):
    """Against another mechanism: the whole causal model with a hook that adds to the block's input or output."""
    lm, whole = loaded[kind]
    hook = hooks_of(lm)[place]
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    change = torch.randn(2, 9, lm.width, generator=torch.Generator().manual_seed(2))
    block, post = lm.find_hook(hook)
    module = whole.base_model.get_submodule("h" if kind == "gpt2" else "layers")[block]
    if post:
        handle = module.register_forward_hook(lambda _, __, out: out + change)
    else:
        handle = module.register_forward_pre_hook(lambda _, args: (args[0] + change, *args[1:]))
    with torch.no_grad():
        expected = whole(input_ids=ids, use_cache=False).logits
    handle.remove()
    rest = Continuation(lm, hook)
    found = rest.logits(rest.finish(lm.run(ids, hook) + change).flatten(0, 1))
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_as_before(loaded, kind):
    lm, _ = loaded[kind]
    ids = torch.randint(VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    before = lm.run(ids, "blocks.2.hook_resid_post")
    rest = Continuation(lm, "blocks.2.hook_resid_pre")
    rest.finish(torch.zeros(2, 7, lm.width))
    with pytest.raises(UsageError, match="expected"):
        rest.finish(torch.zeros(7, lm.width))
    assert torch.equal(lm.run(ids, "blocks.2.hook_resid_post"), before)
    assert not any("forward" in vars(block) for block in lm.blocks)


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_losses_and_divergences_are_their_definitions_in_any_chunks(loaded, kind, n, chunk, seed):
    lm, _ = loaded[kind]
    rest = Continuation(lm, "blocks.1.hook_resid_pre")
    rest.chunk = chunk
    generator = torch.Generator().manual_seed(seed)
    finals = torch.randn(3, n, lm.width, generator=generator)
    targets = torch.randint(VOCABULARY, (n,), generator=generator)
    losses, kl = rest.compare(finals[0], [finals[0], *finals[1:]], targets)
    log_p = [torch.log_softmax(rest.logits(final).double(), dim=-1) for final in finals]
    for i, q in enumerate(log_p):
        torch.testing.assert_close(losses[i + 1], -q[torch.arange(n), targets], rtol=1e-4, atol=1e-5)
        divergence = (log_p[0].exp() * (log_p[0] - q)).sum(-1)
        torch.testing.assert_close(kl[i], divergence, rtol=1e-4, atol=1e-5)
    assert torch.equal(losses[0], losses[1]) and not kl[0].any()
    ids = torch.tensor([4, 7, 4])
    torch.testing.assert_close(rest.log_probs(finals[1], ids).double(), log_p[1][:, ids], rtol=1e-4, atol=1e-5)


def test_a_head_of_its_own_is_read_from_one_file_or_several(loaded, tmp_path):
    lm, whole = loaded["mistral"]
    assert not whole.config.tie_word_embeddings
    whole.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    lm.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    states = torch.randn(2, 5, lm.width)
    sharded = LanguageModel(tmp_path / "shards", context=CONTEXT)
    one, other = (Continuation(model, "blocks.1.hook_resid_pre") for model in (lm, sharded))
    assert torch.equal(one.logits(one.finish(states)[0]), other.logits(other.finish(states)[0]))
    whole.base_model.save_pretrained(tmp_path / "headless")
    lm.tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(UsageError, match=r"do not hold lm_head\.weight"):
        Continuation(LanguageModel(tmp_path / "headless", context=CONTEXT), "blocks.1.hook_resid_pre")


@pytest.mark.parametrize("kind", ("gpt2", "gemma3"))
def test_a_tied_head_is_the_embedding_itself(loaded, kind):
    lm, _ = loaded[kind]
    head = Continuation(lm, "blocks.1.hook_resid_pre").head
    assert head.weight.data_ptr() == lm.model.get_input_embeddings().weight.data_ptr(), "no second copy"


def test_bfloat16_weights(loaded):
    lm, _ = loaded["gemma3"]
    small = LanguageModel(lm.place, context=CONTEXT, dtype="bfloat16")
    rest = Continuation(small, "blocks.1.hook_resid_pre")
    exact = Continuation(lm, "blocks.1.hook_resid_pre")
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    states = lm.run(ids, "blocks.1.hook_resid_pre")
    found, expected = (one.logits(one.finish(states).flatten(0, 1)) for one in (rest, exact))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()
