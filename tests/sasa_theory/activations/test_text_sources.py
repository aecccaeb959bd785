"""Text: files, directories, patterns, HTML, gzip, datasets; and what is said when it is not there."""

import gzip
import html
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.activations.text import as_texts, read_file, read_text, strip_html
from synthetic.errors import DataError, LabError, UsageError


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("bee é\n", encoding="utf-8")
    (tmp_path / "a.html").write_text("<html><head><title>T</title></head><body><p>hay &amp; straw</p></body></html>")
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress(b"sea\n"))
    (tmp_path / "ignored.bin").write_bytes(b"\xff\xfe\x00")
    return tmp_path


def test_directories_patterns_and_files(corpus):
    assert list(read_text(str(corpus))) == ["hay & straw\n", "bee é\n", "sea\n"]
    assert list(read_text([f"{corpus}/*.txt", f"{corpus}/sub/c.txt.gz"])) == ["bee é\n", "sea\n"]
    texts = read_text(str(corpus / "b.txt"))
    assert list(texts) == list(texts) == ["bee é\n"], "a Texts can be walked again"


def test_identity_follows_the_content(corpus):
    before = read_text(str(corpus)).identity
    assert read_text(str(corpus)).identity == before
    (corpus / "b.txt").write_text("bea\n")
    assert read_text(str(corpus)).identity != before
    assert as_texts(["ab", "c"]).identity != as_texts(["a", "bc"]).identity


word = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(st.sampled_from(["p", "div", "b", "h2"]), st.lists(word, min_size=1, max_size=4)), max_size=6)
)
@settings(deadline=None, max_examples=50)
def test_html_keeps_words_and_drops_markup(elements):
    page = "<head><style>x{}</style></head><body><script>if (a<b) {}</script>" + "".join(
        f"<{tag} class='x'> {html.escape(' '.join(words))} </{tag}>" for tag, words in elements
    )
    expected = " ".join(" ".join(words) for _, words in elements)
    assert strip_html(page).split() == expected.split()


def test_html_may_declare_its_charset(tmp_path):
    page = "<html><head><meta charset='latin-1'></head><body>caf\xe9</body></html>"
    (tmp_path / "x.html").write_bytes(page.encode("latin-1"))
    assert read_file(tmp_path / "x.html") == "café\n"
    (tmp_path / "y.html").write_bytes(page.replace("latin-1", "klingon").encode("latin-1"))
    with pytest.raises(DataError, match="unknown charset 'klingon'"):
        read_file(tmp_path / "y.html")


def test_what_is_not_text_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin.txt is not utf-8 text: byte 0xe9 at offset 3; convert it"):
        read_text(str(tmp_path / "latin.txt"))
    (tmp_path / "half.txt.gz").write_bytes(gzip.compress(b"sea" * 1000)[:-9])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_text(str(tmp_path / "half.txt.gz"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UsageError, match="holds no text"):
        read_text(str(tmp_path / "empty.txt"))
    with pytest.raises(UsageError, match=r"'.*nothing.txt' does not exist; for a Hugging Face dataset write hf:NAME"):
        read_text(str(tmp_path / "nothing.txt"))
    with pytest.raises(UsageError, match="no file matches the pattern"):
        read_text(str(tmp_path / "*.md"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match="holds no text files"):
        read_text(str(tmp_path / "bare"))
    with pytest.raises(UsageError, match="no text was given"):
        read_text([])
    with pytest.raises(UsageError, match="give a list of strings"):
        as_texts("one string")
    with pytest.raises(UsageError, match="not an iterator"):
        as_texts(iter(["a"]))
    with pytest.raises(UsageError, match="document 1 is int"):
        as_texts(["a", 3])


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the datasets package: what it is asked for, and rows of its own."""
    asked = []
    rows = {"own/er": [{"text": "one", "n": 1}, {"text": "two", "n": 2}], "two": [{"a": "x", "b": "y"}], "none": []}

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        if name not in rows:
            raise FileNotFoundError(f"no dataset {name}\nlong story")
        return iter(rows[name])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_datasets_by_name(hub):
    texts = read_text("own/er")
    assert list(texts) == list(texts) == ["one", "two"]
    assert list(read_text("hf:two@small:test:b")) == ["y"]
    assert hub[-1] == ("two", "small", "test", True) and hub[0] == ("own/er", None, "train", True)
    with pytest.raises(UsageError, match=r"columns of strings are a, b, and none of them is named 'text'"):
        list(read_text("hf:two"))
    with pytest.raises(UsageError, match=r"columns of strings are a, b, and 'c' is not one of them; name one"):
        list(read_text("hf:two:train:c"))
    with pytest.raises(UsageError, match="has no rows"):
        list(read_text("hf:none"))
    with pytest.raises(LabError, match=r"cannot be opened \(FileNotFoundError: no dataset gone/away\); check the name"):
        list(read_text("gone/away"))
