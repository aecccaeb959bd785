"""From text to a store: what it holds, what is left out, stops, workers, and what goes wrong."""

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

from sasa_theory.activations import ActivationStore, LanguageModel, write_activations
from sasa_theory.activations import gather as gather_module
from sasa_theory.activations.layout import read_manifest
from synthetic.errors import DataError, Interrupted, UsageError

pytestmark = pytest.mark.lm

KINDS = ("gpt2", "mistral", "gemma3")
CONTEXT = 12


def write(directory, out, texts, tokens=400, **settings):
    settings = {"context": CONTEXT, "shard_rows": 100, "progress": False, "dtype": "float32", **settings}
    return write_activations(str(directory), "blocks.1.hook_resid_pre", texts, out, tokens, **settings)


def same_files(one, other):
    names = sorted(file.name for file in one.iterdir() if file.name != ".lock")
    match, mismatch, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(match) == names and not mismatch and not errors


@pytest.mark.parametrize("kind", KINDS)
def test_store_holds_the_rows_of_the_text(directories, models, tmp_path, kind, sentences):
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


def test_sinks_are_dropped_and_counted(directories, models, tmp_path, monkeypatch, caplog, sentences):
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


def test_special_tokens_may_be_kept(directories, tmp_path, sentences):
    done = write(directories["mistral"], tmp_path / "s", sentences(2, 60), keep_special=True)
    store = ActivationStore(done.path)
    assert done.dropped == {} and (store.column("tokens")[store.column("positions") == 0] == 0).all()


def test_stopped_and_extended_stores_equal_the_straight_run(directories, tmp_path, monkeypatch, sentences):
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
def test_any_number_of_processes_gives_the_same_bytes(directories, tmp_path, sentences):
    texts = sentences(5, 300)
    for workers in (1, 2, 3):
        write(directories["mistral"], tmp_path / str(workers), texts, tokens=4000, workers=workers)
    assert same_files(tmp_path / "1", tmp_path / "2") and same_files(tmp_path / "1", tmp_path / "3")


@pytest.mark.slow
def test_control_c_ends_workers_and_says_what_is_kept(directories, tmp_path, sentences):
    code = (
        "import sys, json, signal\n"
        "from synthetic.errors import Interrupted\n"
        "from sasa_theory.activations import write_activations\n"
        "if __name__ == '__main__':\n"
        # a shell that runs the tests in the background makes them, and all they start, ignore Control-C
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
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


def test_bad_requests_for_a_store_are_usage_errors(directories, tmp_path, sentences):
    with pytest.raises(UsageError, match="holds no tokens"):
        write(directories["gpt2"], tmp_path / "s", ["", " "])
    with pytest.raises(UsageError, match="positive"):
        write(directories["gpt2"], tmp_path / "s", ["w1"], tokens=0)
    write(directories["gpt2"], tmp_path / "t", sentences(1, 20), tokens=50)
    with pytest.raises(UsageError, match="begun with text_identity"):
        write(directories["gpt2"], tmp_path / "t", sentences(2, 20), tokens=50)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_the_model_is_named(directories, tmp_path, monkeypatch, bad, sentences):
    run = LanguageModel.run
    monkeypatch.setattr(LanguageModel, "run", lambda *a: run(*a).masked_fill((a[1] == 10)[..., None], bad))
    with pytest.raises(DataError, match=r"shard \d of .*, row \d+ holds NaN or Inf"):
        write(directories["gpt2"], tmp_path / "s", sentences(2, 60))


def test_text_that_ends_early_is_said(directories, tmp_path, caplog):
    done = write(directories["gpt2"], tmp_path / "s", ["w1 w2 w3"], tokens=50)
    assert done.rows == 3 and "the text ended after 3 rows, 50 were asked for" in caplog.text


def test_a_stopped_store_goes_on_without_tokenising_the_text_before(counted, tmp_path, sentences):
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
