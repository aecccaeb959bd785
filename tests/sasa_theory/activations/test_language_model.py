"""Hooks, contexts and the way from text to a store, on tiny random models (no hub)."""

import dataclasses
import filecmp
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sasa_theory.activations import ActivationStore, LanguageModel, LiveActivations, write_activations
from sasa_theory.activations import gather as gather_module
from sasa_theory.activations.layout import read_manifest
from synthetic.errors import DataError, Interrupted, UsageError
from synthetic.source import Dataset, Source

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral", "gemma3")
WORDS = [f"w{i}" for i in range(60)]
CONTEXT = 12


@pytest.fixture(scope="session")
def directories(tmp_path_factory, tiny_language_model):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, directory in made.items():
        tiny_language_model(kind, directory, WORDS)
    return made


@pytest.fixture(scope="session")
def models(directories):
    return {kind: LanguageModel(path, context=CONTEXT) for kind, path in directories.items()}


def count_hooks(lm):
    return [(len(block._forward_hooks), len(block._forward_pre_hooks)) for block in lm.blocks]


def sentences(seed, n, longest=40):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, longest))) for _ in range(n)]


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
def test_rows_of_texts_equal_one_by_one_runs(models, kind, seed, n, batch_tokens):
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
def test_last_states_are_every_hook_at_the_last_token(models, kind):
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


def test_long_texts_are_tokenised_in_pieces_without_loss(models, monkeypatch):
    text = "\n".join(sentences(1, 50))

    def token_ids(text):
        return [token_id for *_, token_id in models["gpt2"]._tokens(text)]

    whole = token_ids(text)
    monkeypatch.setattr("sasa_theory.activations.language_model.PIECE", 97)
    assert token_ids(text) == whole
    assert token_ids("w1" + " " * 500 + "w2") == token_ids("w1 w2")


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, text, **options):
        self.characters += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture
def counted(models, monkeypatch):
    """The tiny Mistral and the tokenizer that counts for it, in pieces of at most 97 characters."""
    lm = models["mistral"]
    monkeypatch.setattr("sasa_theory.activations.language_model.PIECE", 97)
    monkeypatch.setattr(lm, "tokenizer", Counted(lm.tokenizer))
    return lm, lm.tokenizer


def test_contexts_begin_at_any_place_without_tokenising_what_comes_before(counted):
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


# ---- from text to a store --------------------------------------------------------------------------------------


def write(directory, out, texts, tokens=400, **settings):
    settings = {"context": CONTEXT, "shard_rows": 100, "progress": False, "dtype": "float32", **settings}
    return write_activations(str(directory), "blocks.1.hook_resid_pre", texts, out, tokens, **settings)


def same_files(one, other):
    names = sorted(file.name for file in one.iterdir() if file.name != ".lock")
    match, mismatch, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(match) == names and not mismatch and not errors


@pytest.mark.parametrize("kind", KINDS)
def test_store_holds_the_rows_of_the_text(directories, models, tmp_path, kind):
    texts = sentences(2, 60)
    done = write(directories[kind], tmp_path / "s", texts, tokens=400)
    store = ActivationStore(done.path)
    lm = models[kind]
    direct = list(lm.activations(texts, "blocks.1.hook_resid_pre"))
    tokens = torch.cat([one.tokens for one in direct])
    keep = ~torch.isin(tokens, torch.tensor(sorted(lm.special)))
    n = len(store)
    assert 400 <= n < 400 + CONTEXT and done.rows == n
    assert np.array_equal(store.column("tokens"), tokens[keep][:n])
    assert np.array_equal(store.column("positions"), torch.cat([one.positions for one in direct])[keep][:n])
    documents = np.repeat(np.arange(60), [len(one.tokens) for one in direct])[keep][:n]
    assert np.array_equal(store.column("documents"), documents)
    torch.testing.assert_close(store.rows(range(n)), torch.cat([one.rows for one in direct])[keep][:n])
    contexts = int(store.column("contexts")[-1]) + 1
    assert done.dropped == ({"special": contexts} if lm.prefix else {})
    assert store.norm_quantiles == done.norm_quantiles and done.norm_quantiles["0.5"] > 0
    assert store.meta["hook"] == "blocks.1.hook_resid_pre" and store.meta["text"] == "60 strings"


def test_sinks_are_dropped_and_counted(directories, models, tmp_path, monkeypatch, caplog):
    texts = sentences(3, 60)
    plain = ActivationStore(write(directories["gpt2"], tmp_path / "plain", texts, tokens=800, norm_limit=None).path)
    norms = plain.column("norms")
    run = LanguageModel.run

    def with_sinks(self, ids, hook):
        hidden = run(self, ids, hook)
        return torch.where((ids == 10)[..., None], 100 * hidden, hidden)

    monkeypatch.setattr(LanguageModel, "run", with_sinks)
    done = write(directories["gpt2"], tmp_path / "sinks", texts)
    store = ActivationStore(done.path)
    seen = plain.column("tokens")[: len(store) + done.dropped["norm"]]
    assert done.dropped == {"norm": int((seen == 10).sum())} and done.dropped["norm"] > 0
    assert "too many for attention sinks" in caplog.text, "one word in sixty is more than 1 %"
    assert 10 not in store.column("tokens")
    assert store.column("norms").max() < 3 * np.median(norms)
    kept = write(directories["gpt2"], tmp_path / "kept", texts, norm_limit=None)
    assert kept.dropped == {} and 10 in ActivationStore(kept.path).column("tokens")


def test_special_tokens_may_be_kept(directories, tmp_path):
    done = write(directories["mistral"], tmp_path / "s", sentences(2, 60), keep_special=True)
    store = ActivationStore(done.path)
    assert done.dropped == {} and (store.column("tokens")[store.column("positions") == 0] == 0).all()


def test_stopped_and_extended_stores_equal_the_straight_run(directories, tmp_path, monkeypatch):
    texts, kind = sentences(4, 200), directories["gemma3"]
    monkeypatch.setitem(gather_module.CHUNK_TOKENS, "cpu", 3 * CONTEXT)
    write(kind, tmp_path / "straight", texts, tokens=1500)
    calls = itertools.count()
    run = LanguageModel.run

    def interrupted(self, ids, hook):
        if next(calls) % 17 == 16:
            raise KeyboardInterrupt
        return run(self, ids, hook)

    monkeypatch.setattr(LanguageModel, "run", interrupted)
    monkeypatch.setattr(gather_module, "REFERENCE_TOKENS", 100)
    stops = 0
    while True:
        try:
            write(kind, tmp_path / "stopped", texts, tokens=1500)
            break
        except Interrupted as stop:
            assert "The same command goes on from there" in str(stop)
            stops += 1
            assert stops < 100
    assert stops > 3
    one, other = (ActivationStore(tmp_path / name) for name in ("straight", "stopped"))
    assert one.fingerprint() == other.fingerprint()
    again = write(kind, tmp_path / "stopped", texts, tokens=1500)
    assert (again.tokens_run, again.rows) == (0, len(one)), "a finished store is left as it is"
    monkeypatch.setattr(LanguageModel, "run", run)
    write(kind, tmp_path / "extended", texts, tokens=700)
    write(kind, tmp_path / "extended", texts, tokens=1500)
    extended = ActivationStore(tmp_path / "extended")
    assert torch.equal(extended.rows(range(len(extended))), one.rows(range(len(one))))
    assert extended.dropped == one.dropped


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(directories, tmp_path):
    texts = sentences(5, 300)
    for workers in (1, 2, 3):
        write(directories["mistral"], tmp_path / str(workers), texts, tokens=4000, workers=workers)
    assert same_files(tmp_path / "1", tmp_path / "2") and same_files(tmp_path / "1", tmp_path / "3")


@pytest.mark.slow
def test_control_c_ends_workers_and_says_what_is_kept(directories, tmp_path):
    code = (
        "import sys, json\n"
        "from synthetic.errors import Interrupted\n"
        "from sasa_theory.activations import write_activations\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        texts = json.loads(sys.argv[2]) * 5000\n"
        "        write_activations(sys.argv[1], 'blocks.1.hook_resid_pre', texts, sys.argv[3], 10**7,\n"
        "                          context=12, workers=2, progress=False, shard_rows=500)\n"
        "    except Interrupted as error:\n"
        "        print(error)\n"
        "        sys.exit(error.exit_status)\n"
    )
    script, out = tmp_path / "run.py", tmp_path / "s"
    script.write_text(code)
    arguments = [sys.executable, script, directories["mistral"], json.dumps(sentences(6, 5)), out]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("shard-*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "rows are in" in printed and "Traceback" not in errors
    ActivationStore(out).verify()


def test_worker_failure_is_one_error(directories, monkeypatch):
    from sasa_theory.activations.processes import _receive

    class Pipe:
        def __init__(self, answer):
            self.answer = answer

        def recv(self):
            if self.answer is None:
                raise EOFError
            return self.answer

    from collections import deque

    from synthetic.errors import LabError

    with pytest.raises(LabError, match="worker process died"):
        _receive(deque([(Pipe(None), [])]))
    with pytest.raises(LabError, match="worker process failed: ValueError: no"):
        _receive(deque([(Pipe("ValueError: no"), [])]))


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
    with pytest.raises(UsageError, match="holds no tokens"):
        write(directories["gpt2"], tmp_path / "s", ["", " "])
    with pytest.raises(UsageError, match="positive"):
        write(directories["gpt2"], tmp_path / "s", ["w1"], tokens=0)
    write(directories["gpt2"], tmp_path / "t", sentences(1, 20), tokens=50)
    with pytest.raises(UsageError, match="begun with text_identity"):
        write(directories["gpt2"], tmp_path / "t", sentences(2, 20), tokens=50)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_the_model_is_named(directories, tmp_path, monkeypatch, bad):
    run = LanguageModel.run
    monkeypatch.setattr(LanguageModel, "run", lambda *a: run(*a).masked_fill((a[1] == 10)[..., None], bad))
    with pytest.raises(DataError, match=r"shard \d of .*, row \d+ holds NaN or Inf"):
        write(directories["gpt2"], tmp_path / "s", sentences(2, 60))


def test_text_that_ends_early_is_said(directories, tmp_path, caplog):
    done = write(directories["gpt2"], tmp_path / "s", ["w1 w2 w3"], tokens=50)
    assert done.rows == 3 and "the text ended after 3 rows, 50 were asked for" in caplog.text


# ---- without a store -------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 30), st.sampled_from(["train", "eval", "train:2"]))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_streams_resume_exactly(models, size, before, stream):
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


def test_a_live_stream_resumes_without_tokenising_the_text_before(counted):
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


def test_a_stopped_store_goes_on_without_tokenising_the_text_before(counted, tmp_path):
    lm, tokenizer = counted
    texts = sentences(7, 400)

    def to(name, tokens):
        tokenizer.characters = 0
        settings = {"norm_limit": None, "shard_rows": 100, "progress": False}
        write_activations(lm, "blocks.1.hook_resid_pre", texts, tmp_path / name, tokens, **settings)
        return tokenizer.characters

    to("straight", 6200)
    to("extended", 6000)
    manifest = read_manifest(tmp_path / "extended")
    shutil.copytree(tmp_path / "extended", tmp_path / "old")
    shards = tuple(dataclasses.replace(shard, place=None) for shard in manifest.shards)
    dataclasses.replace(manifest, shards=shards).write(tmp_path / "old")  # as stores were before
    quick, slow = to("extended", 6200), to("old", 6200)
    assert quick < 0.2 * slow
    stores = [ActivationStore(tmp_path / name) for name in ("straight", "extended", "old")]
    rows = [store.rows(range(len(store))) for store in stores]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_live_streams_share_out_the_rows(models):
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
