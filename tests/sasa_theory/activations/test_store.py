"""The store: what goes in comes out, and no accident makes it lie.

One long file, because reading, streams and accidents write their stores with the same helpers.
"""

import contextlib
import errno
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.activations import ActivationStore, StoreWriter
from sasa_theory.activations.store import EVAL_EVERY
from synthetic.errors import DataError, LabError, UsageError
from synthetic.source import Dataset, Source

META = {"model": "made up", "hook": "blocks.0.hook_resid_pre"}
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def make_rows(seed, n, width):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def append_all(writer, appends, width, seed=0):
    """Append i has sizes[i] rows of context i; begins where the writer stands, as a caller does after a kill."""
    for i, n in enumerate(appends):
        if i >= writer.mark:
            ids = torch.arange(n)
            writer.append(
                make_rows(1000 * seed + i, n, width),
                mark=i + 1,
                tokens=ids * 7 + i,
                positions=ids,
                contexts=torch.full((n,), i),
                dropped={"special": 1},
            )


def write_store(path, appends, width, *, dtype="float32", shard_rows=8, seed=0):
    with StoreWriter(path, width, meta=META, dtype=dtype, shard_rows=shard_rows) as writer:
        append_all(writer, appends, width, seed)
        writer.finish()
    return ActivationStore(path)


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(Path(path).iterdir()) if not file.name.startswith(".")}


sizes = st.lists(st.integers(0, 7), min_size=1, max_size=40).filter(lambda appends: sum(appends) > 0)


@given(sizes, st.integers(1, 9), st.integers(1, 30), st.sampled_from(sorted(TORCH)), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_rows_and_columns_come_back(tmp_path_factory, appends, width, shard_rows, dtype, seed):
    store = write_store(
        tmp_path_factory.mktemp("s") / "store", appends, width, dtype=dtype, shard_rows=shard_rows, seed=seed
    )
    wanted = torch.cat([make_rows(1000 * seed + i, n, width) for i, n in enumerate(appends)]).to(TORCH[dtype]).float()
    assert isinstance(store, Dataset)
    assert (len(store), store.width, store.complete) == (sum(appends), width, True)
    assert torch.equal(store.rows(range(len(store))), wanted)
    index = torch.randint(len(store), (50,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(store.rows(index), wanted[index])
    contexts = np.repeat(np.arange(len(appends)), appends)
    assert np.array_equal(store.column("contexts"), contexts)
    assert np.array_equal(store.column("tokens", index), (store.column("positions") * 7 + contexts)[index])
    norms = wanted.double().norm(dim=1).numpy()
    assert np.allclose(store.column("norms"), norms, rtol=1e-6)
    assert store.norm_quantiles["0.5"] == pytest.approx(np.quantile(norms, 0.5), rel=1e-6)
    assert store.dropped == {"special": len(appends)}
    store.verify()


@given(st.integers(2, 300), st.integers(1, 60), st.integers(1, 40), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_streams_share_out_all_rows_once_an_epoch(tmp_path_factory, n, per_context, size, renamed, seed):
    appends = [per_context] * (n // per_context) + ([n % per_context] if n % per_context else [])
    store = write_store(tmp_path_factory.mktemp("s") / "store", appends, 2, shard_rows=50)
    train, held_out = store.split("train"), store.split("eval")
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(n))
    contexts = store.column("contexts")
    if len(appends) >= EVAL_EVERY:
        assert not set(contexts[train]) & set(contexts[held_out])
    for name in ("train", "eval"):
        stream = store.batches(size, stream=name + ":3" * renamed, seed=seed)
        assert isinstance(stream, Source)
        rows = np.concatenate([stream.next_rows() for _ in range(-(-2 * len(stream.rows) // size))])
        for epoch in (0, 1):
            one = rows[epoch * len(stream.rows) : (epoch + 1) * len(stream.rows)]
            assert np.array_equal(np.sort(one), store.split(name))


@given(st.integers(1, 30), st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None, max_examples=25)
def test_shuffled_stream_equals_direct_reading_and_resumes(tmp_path_factory, size, before, after):
    store = write_store(tmp_path_factory.mktemp("s") / "store", [5] * 25, 3, dtype="bfloat16", shard_rows=20)
    straight = [next(stream) for stream in [store.batches(size)] for _ in range(before + after)]
    numbers = store.batches(size)
    everything = store.rows(range(len(store)))
    assert all(torch.equal(batch, everything[numbers.next_rows()]) for batch in straight)
    first = store.batches(size)
    for _ in range(before):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = ActivationStore(store.path).batches(size)
    second.load_state_dict(state)
    assert all(torch.equal(next(second), batch) for batch in straight[before:])


def test_stream_names_change_the_order_only(tmp_path):
    store = write_store(tmp_path / "s", [10] * 40, 2)
    epoch = len(store.split("train"))
    orders = [store.batches(epoch, stream=name, seed=seed).next_rows() for name, seed in
              (("train", 0), ("train:1", 0), ("train", 1))]  # fmt: skip
    assert all(np.array_equal(np.sort(order), np.sort(orders[0])) for order in orders)
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(orders, 2))
    two = store.batches(2 * epoch).next_rows()
    assert not np.array_equal(two[:epoch], two[epoch:]), "each epoch is shuffled anew"
    with pytest.raises(UsageError, match=r"unknown stream 'trian'; did you mean 'train'"):
        store.batches(4, stream="trian")
    with pytest.raises(UsageError, match="stream"):
        store.batches(4).load_state_dict(store.batches(4, stream="eval").state_dict())
    with pytest.raises(UsageError, match="store"):
        store.batches(4).load_state_dict(write_store(tmp_path / "t", [9] * 40, 2).batches(4).state_dict())


# ---- accidents -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing may clean up after it."""


@contextlib.contextmanager
def killed_at(operation):
    """Die before (even) or after (odd) file operation number operation // 2; nothing after that takes effect."""
    count = itertools.count()
    dead = False

    def dying(function):
        def wrapped(*args, **kwargs):
            nonlocal dead
            number = next(count)
            if dead:
                raise Killed
            if number == operation // 2:
                dead = True
                if operation % 2:
                    function(*args, **kwargs)
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    def half(self, data):
        """A write that stops in the middle."""
        nonlocal dead
        number = next(count)
        if dead:
            raise Killed
        if number == operation // 2:
            dead = True
            with open(self, "wb") as file:
                file.write(data[: len(data) // 2])
            raise Killed
        with open(self, "wb") as file:
            return file.write(data)

    with (
        mock.patch.object(os, "replace", dying(os.replace)),
        mock.patch.object(os, "fsync", dying(os.fsync)),
        mock.patch.object(Path, "unlink", dying(Path.unlink)),
        mock.patch.object(Path, "write_bytes", half),
        contextlib.suppress(Killed),
    ):
        yield
    killed_at.reached = dead


@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_killed_after_any_file_operation_goes_on_to_the_same_bytes(tmp_path, shard_rows):
    appends, width = [3, 4, 0, 5, 2, 6], 4
    straight = write_store(tmp_path / "straight", appends, width, shard_rows=shard_rows)
    wanted = straight.rows(range(len(straight)))
    for operation in itertools.count():
        path = tmp_path / f"killed{operation}"
        with killed_at(operation):
            write_store(path, appends, width, shard_rows=shard_rows)
        if not killed_at.reached:
            break
        with contextlib.suppress(UsageError):  # no manifest, or no row yet
            part = ActivationStore(path)
            part.verify()
            assert torch.equal(part.rows(range(len(part))), wanted[: len(part)])
        again = write_store(path, appends, width, shard_rows=shard_rows)
        assert contents(path) == contents(straight.path)
        assert again.fingerprint() == straight.fingerprint()
        assert not list(path.glob(".*.tmp"))
    assert operation > 10


KILLED_WRITER = """
import sys, torch
from sasa_theory.activations import StoreWriter
with StoreWriter(sys.argv[1], 64, meta={}, shard_rows=500) as writer:
    for i in range(writer.mark, 400):
        rows = torch.randn(100, 64, generator=torch.Generator().manual_seed(i))
        writer.append(rows, mark=i + 1, contexts=torch.full((100,), i))
        print(len(writer.manifest.shards), flush=True)
    writer.finish()
"""


def test_a_real_sigkill_leaves_whole_shards_and_resumes(tmp_path):
    def start(path):
        return subprocess.Popen([sys.executable, "-c", KILLED_WRITER, path], stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "straight") as straight:
        straight.communicate()
    assert straight.returncode == 0
    killed = tmp_path / "killed"
    for shards in (2, 5):
        with start(killed) as process:
            for line in process.stdout:
                if int(line) >= shards:
                    process.send_signal(signal.SIGKILL)
                    break
            process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        part = ActivationStore(killed)
        part.verify()
        assert len(part) >= 500 * shards and not part.complete
        whole = ActivationStore(tmp_path / "straight")
        assert torch.equal(part.rows(range(len(part))), whole.rows(range(len(part))))
    with start(killed) as process:
        process.communicate()
    assert contents(killed) == contents(tmp_path / "straight")


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_a_flipped_byte_is_detected_and_named(tmp_path_factory, data):
    store = write_store(tmp_path_factory.mktemp("s") / "store", [4] * 10, 3, shard_rows=8)
    files = sorted(file for file in store.path.iterdir() if not file.name.startswith("."))
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    old = content[place]
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        damaged = ActivationStore(store.path)
        rows = damaged.rows(range(len(damaged)))
    except LabError as error:
        assert file.name in str(error) or "format" in str(error) or "manifest" in str(error)
        return
    # only white space between the manifest's values may change without meaning anything
    assert file.name == "manifest.json" and chr(old) in " \n"
    assert torch.equal(rows, store.rows(range(len(store))))


def test_every_flipped_byte_of_the_manifest_is_detected(tmp_path):
    store = write_store(tmp_path / "s", [4] * 6, 3, shard_rows=8)
    file = store.path / "manifest.json"
    content = file.read_bytes()
    for place, old in enumerate(content):
        if chr(old) not in " \n":
            file.write_bytes(content[:place] + bytes([old ^ 1]) + content[place + 1 :])
            with pytest.raises(LabError):
                ActivationStore(store.path)


def test_damage_is_found_at_first_use_and_written_anew(tmp_path, caplog):
    appends = [4] * 10
    store = write_store(tmp_path / "s", appends, 3, shard_rows=8)
    before = contents(store.path)
    victim = store.path / "shard-00002.safetensors"
    content = bytearray(before[victim.name])
    content[-5] ^= 4
    victim.write_bytes(content)
    opened = ActivationStore(store.path)
    assert torch.isfinite(opened.rows(range(8))).all(), "shards before it can be read"
    with pytest.raises(DataError, match=r"shard-00002.safetensors is damaged: its sha256 begins"):
        opened.rows([20])
    with pytest.raises(DataError, match="shard-00002"):
        opened.verify()
    victim.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard-00002.safetensors has \d+ bytes, the manifest says"):
        ActivationStore(store.path)
    victim.unlink()
    with pytest.raises(DataError, match=r"shard-00002.safetensors is missing"):
        ActivationStore(store.path)
    write_store(store.path, appends, 3, shard_rows=8)
    assert contents(store.path) == before
    assert "going on after 2 of 5 shards" in caplog.text


@pytest.mark.parametrize("place", ["fsync", "write_bytes"])
def test_a_full_disk_is_one_error_and_what_was_written_stays(tmp_path, place):
    target = os if place == "fsync" else Path
    path = tmp_path / "s"
    real = getattr(target, place)
    shards_before = 2

    def full(*args):
        if len(list(path.glob("shard-*"))) >= shards_before:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with mock.patch.object(target, place, full), pytest.raises(LabError, match="disk is full") as caught:
        write_store(path, [4] * 10, 3, shard_rows=8)
    assert caught.value.exit_status == 1
    part = ActivationStore(path)
    part.verify()
    # the sync that fails may be the manifest's, after the second shard's own
    assert len(part) in (8, 16) and not part.complete
    assert next(part.batches(4)).shape == (4, 3)
    assert not list(path.glob(".*.tmp"))
    straight = write_store(tmp_path / "t", [4] * 10, 3, shard_rows=8)
    write_store(path, [4] * 10, 3, shard_rows=8)
    assert contents(path) == contents(straight.path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_named_when_written(tmp_path, bad):
    rows = torch.zeros(6, 3)
    rows[4, 1] = bad
    with StoreWriter(tmp_path / "s", 3, meta=META, shard_rows=10) as writer:
        writer.append(torch.zeros(7, 3), mark=1)
        writer.append(torch.zeros(4, 3), mark=2)
        writer.append(torch.zeros(2, 3), mark=3)
        with pytest.raises(DataError, match=r"shard 1 of .*, row 6 holds NaN or Inf"):
            writer.append(rows, mark=4)


def test_nan_in_a_store_is_named_when_read(tmp_path):
    store = write_store(tmp_path / "s", [4] * 10, 3, shard_rows=8)
    file = store.path / "shard-00003.safetensors"
    content = file.read_bytes()
    row = store.rows([29]).numpy().tobytes()
    assert content.count(row) == 1
    file.write_bytes(content.replace(row, np.float32(np.nan).tobytes() + row[4:]))
    opened = ActivationStore(store.path, verify=False)
    with pytest.raises(DataError, match=r"shard-00003.safetensors holds NaN or Inf at row 5"):
        opened.rows([3, 30, 29])
    with pytest.raises(DataError, match="row 5"):
        next(opened.batches(200))


def test_float16_overflow_says_what_to_do(tmp_path):
    with StoreWriter(tmp_path / "s", 2, meta=META, dtype="float16") as writer:
        writer.append(torch.full((1, 2), 65504.0), mark=1)
        with pytest.raises(DataError, match=r"row 1: a value of 70000 does not fit float16 .* use dtype bfloat16"):
            writer.append(torch.full((1, 2), 70000.0), mark=2)
    large = write_store(tmp_path / "large", [3], 2, dtype="bfloat16")
    assert large.manifest.dtype == "bfloat16"


def test_bad_requests_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        ActivationStore(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="not an activation store"):
        ActivationStore(tmp_path / "other")
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"holds other files \(letter.txt"):
        StoreWriter(tmp_path / "other", 3, meta=META)
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        StoreWriter(tmp_path / "new", 3, meta=META, dtype="bfloat")
    store = write_store(tmp_path / "s", [4] * 10, 3)
    with pytest.raises(UsageError, match=r"begun with hook = 'blocks.0.hook_resid_pre', not 'blocks.1"):
        StoreWriter(store.path, 3, meta={**META, "hook": "blocks.1.hook_resid_pre"}, dtype="float32", shard_rows=8)
    with pytest.raises(UsageError, match="row numbers"):
        store.rows([40])
    with pytest.raises(UsageError, match="unknown column 'token'; did you mean 'tokens'"):
        store.column("token")
    with pytest.raises(UsageError, match="batch size"):
        store.batches(0)
    with StoreWriter(tmp_path / "w", 3, meta=META) as writer:
        with pytest.raises(UsageError, match=r"shape \(2, 4\); expected floats of shape \(n, 3\)"):
            writer.append(torch.zeros(2, 4), mark=1)
        with pytest.raises(UsageError, match="tokens"):
            writer.append(torch.zeros(2, 3), mark=1, tokens=torch.zeros(3, dtype=torch.long))
        with pytest.raises(LabError, match="another process is writing"):
            StoreWriter(tmp_path / "w", 3, meta=META)
        with pytest.raises(LabError, match="no rows were written"):
            writer.finish()
    with pytest.raises(UsageError, match="holds no rows yet"):
        ActivationStore(tmp_path / "w")
    one = write_store(tmp_path / "one", [1], 3)
    with pytest.raises(UsageError, match="too few"):
        one.split("eval")


def test_a_store_sent_to_another_process_takes_its_place_along_and_not_its_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_store("store", [5000], 64, shard_rows=5000)
    store = ActivationStore("store")
    rows = store.rows(np.arange(10))
    sent = pickle.dumps(store)
    assert len(sent) < rows.nbytes * 100  # 500 times as many are open here
    monkeypatch.chdir("/")
    assert torch.equal(pickle.loads(sent).rows(np.arange(10)), rows)


def test_fingerprints_tell_stores_apart(tmp_path):
    makers = [{"appends": [4] * 5}, {"appends": [4] * 6}, {"appends": [4] * 5, "seed": 1},
              {"appends": [4] * 5, "dtype": "bfloat16"}]  # fmt: skip
    prints = [write_store(tmp_path / str(i), width=3, **maker).fingerprint() for i, maker in enumerate(makers)]
    assert len(set(prints)) == len(prints)
    assert write_store(tmp_path / "same", [4] * 5, 3).fingerprint() == prints[0]
