"""Make text files for `sasa-lab activations --text` from packages that any mirror of PyPI and Debian holds.

    python examples/make_text.py PACKAGES OUT

PACKAGES is a directory with anarchism_*.deb, r-cran-janeaustenr_*.deb and gensim-*.whl (any of them; docs/text.md
says how to get them). OUT receives pieces of about 20,000 characters, numbered so that the sources are mixed: however
few tokens a run takes, it takes them from all. It needs dpkg-deb to open a .deb.
"""

import argparse
import bz2
import gzip
import lzma
import re
import struct
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from sasa_theory.activations.text import read_file

PIECE = 20_000


def anarchism(root: Path) -> Iterator[str]:
    """The pages of An Anarchist FAQ."""
    for page in sorted((root / "usr/share/doc/anarchism/html").glob("*.html")):
        yield read_file(page)


def austen(root: Path) -> Iterator[str]:
    """Jane Austen's six novels from the R package's database of serialised objects: one character vector each."""
    data = root / "usr/lib/R/site-library/janeaustenr/data"
    index = _unpacked((data / "Rdata.rdx").read_bytes())
    database = (data / "Rdata.rdb").read_bytes()
    # the index holds, for each object, an integer vector (type 13) of two numbers: offset and length
    for found in re.finditer(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{8})", index, re.S):
        offset, length = struct.unpack(">2i", found[1])
        strings = list(_strings(_unpacked(database[offset : offset + length])))
        if len(strings) > 1000:
            yield "\n".join(strings)


def _unpacked(data: bytes) -> bytes:
    """R compresses with gzip, or, after four bytes of length and one of kind, with zlib, bzip2 or xz."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:3] == b"BZh":
        return bz2.decompress(data)
    if data[:6] == b"\xfd7zXZ\x00":
        return lzma.decompress(data)
    if data[4:5] == b"2":
        return bz2.decompress(data[5:])
    if data[4:5] == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
        return lzma.decompress(data[5:], lzma.FORMAT_RAW, filters=filters)
    return zlib.decompress(data[4:])


def _strings(data: bytes) -> Iterator[str]:
    """The strings of a serialised vector: each is a type 9 object with its encoding flags, then its length."""
    at = 0
    while found := re.compile(rb"\x00[\x00-\x0f][\x00-\xff]\x09(.{4})", re.S).search(data, at):
        (length,) = struct.unpack(">i", found[1])
        yield data[found.end() : found.end() + max(0, length)].decode("utf-8", "replace")
        at = found.end() + max(0, length)


def gensim(wheel: Path) -> Iterator[str]:
    """News articles (Lee corpus) and English Wikipedia articles among gensim's test data, without their markup."""
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if name.endswith(("/lee_background.cor", "/lee.cor")):
                yield files.read(name).decode("latin-1")
            elif re.search(r"/enwiki-latest-pages-articles1.*\.bz2$", name):
                yield from _wiki(bz2.decompress(files.read(name)))


def _wiki(dump: bytes) -> Iterator[str]:
    for element in ElementTree.fromstring(dump).iter():
        if element.tag.endswith("}text") and element.text and not element.text.startswith("#REDIRECT"):
            yield _without_markup(element.text)


def _without_markup(text: str) -> str:
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|gallery|nowiki)\b.*?</\1>", "", text, flags=re.S)
    for brackets in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*\|\}", r"\[\[(?:File|Image|Category):[^\[\]]*\]\]"):
        while (shorter := re.sub(brackets, "", text)) != text:
            text = re.sub(r"\[\[(?!File|Image|Category)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", shorter)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"'{2,}|<[^<>]*>|^[=*#:;|! ]+|=+ *$", "", text, flags=re.M)
    return re.sub(r"\n{2,}", "\n", text)


def pieces(text: str) -> Iterator[str]:
    """Cut at line ends into pieces of about PIECE characters."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE:
            yield piece
            piece = ""
    if piece.strip():
        yield piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for package in sorted(arguments.packages.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        found["anarchism"] = [piece for text in anarchism(root) for piece in pieces(text)]
        if (root / "usr/lib/R").is_dir():
            found["austen"] = [piece for text in austen(root) for piece in pieces(text)]
        for wheel in sorted(arguments.packages.glob("gensim-*.whl"))[-1:]:
            found["gensim"] = [piece for text in gensim(wheel) for piece in pieces(text)]
    found = {source: texts for source, texts in found.items() if texts}
    if not found:
        raise SystemExit(f"{arguments.packages} holds none of anarchism_*.deb, r-cran-janeaustenr_*.deb, gensim-*.whl")
    # evenly mixed: piece i of n stands at (i + 1/2) / n
    placed = [((i + 0.5) / len(texts), source, text) for source, texts in found.items() for i, text in enumerate(texts)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, (_, source, text) in enumerate(sorted(placed)):
        (arguments.out / f"{number:05d}-{source}.txt").write_text(text, encoding="utf-8")
    for source, texts in found.items():
        print(f"{source}: {len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
