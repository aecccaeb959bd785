"""examples/make_text.py reads R's serialised novels and Wikipedia's markup, and mixes the sources."""

import bz2
import gzip
import importlib.util
import lzma
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[3] / "examples" / "make_text.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_text", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def r_string(text):
    data = text.encode()
    return b"\x00\x04\x00\x09" + struct.pack(">i", len(data)) + data


@pytest.mark.parametrize("kind", ["zlib", "bzip2", "xz"])
def test_novels_come_out_of_an_r_database(script, tmp_path, kind):
    lines = [f"line {i} é" for i in range(1200)]
    packed = b"X\n\x00\x00\x00\x03" + b"".join(map(r_string, lines))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    body = {
        "zlib": lambda: zlib.compress(packed),
        "bzip2": lambda: b"2" + bz2.compress(packed),
        "xz": lambda: b"Z" + lzma.compress(packed, lzma.FORMAT_RAW, filters=filters),
    }[kind]()
    entry = struct.pack(">i", len(packed)) + body
    data = tmp_path / "usr/lib/R/site-library/janeaustenr/data"
    data.mkdir(parents=True)
    (data / "Rdata.rdb").write_bytes(b"other" + entry)
    index = b"X\n" + struct.pack(">4i", 13, 2, 5, len(entry)) + r_string("emma")
    (data / "Rdata.rdx").write_bytes(gzip.compress(index))
    assert list(script.austen(tmp_path)) == ["\n".join(lines)]


@given(st.lists(st.text(st.characters(codec="ascii", categories=("L", "N", "Zs")), max_size=60), max_size=30))
@settings(deadline=None, max_examples=30)
def test_pieces_lose_nothing(script, lines):
    script.PIECE = 100
    text = "".join(line + "\n" for line in lines)
    pieces = list(script.pieces(text))
    assert "".join(pieces) == text or not text.removeprefix("".join(pieces)).strip()
    assert all(len(piece) < 200 for piece in pieces)


def test_wiki_markup_goes(script):
    text = "'''Anarchy''' is [[rule|no rule]].<ref>{{cite}}</ref> "
    text += "{{Box|{{inner}}}}[[File:x.png|a [[b]]]]\n== Head ==\n* item"
    assert script._without_markup(text).split() == ["Anarchy", "is", "no", "rule.", "Head", "item"]


def test_the_script_runs_on_a_wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / "gensim-4-py3.whl", "w") as wheel:
        wheel.writestr("gensim/test/test_data/lee.cor", "some news\n" * 5000)
    run = [sys.executable, SCRIPT, tmp_path, tmp_path / "out"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    assert "gensim: 3 files" in done.stdout
    assert (tmp_path / "out" / "00000-gensim.txt").read_text().startswith("some news\n")
    (tmp_path / "empty").mkdir()
    assert subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "empty", tmp_path / "x"], cwd=SCRIPT.parents[1]
    ).returncode
