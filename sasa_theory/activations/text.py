"""Text to run a language model on: files, directories, patterns, or a Hugging Face dataset.

A `Texts` can be walked any number of times and yields the same documents in the same order each time; that is what
lets a stopped run find its place again. One file (or one dataset row) is one document.

    notes.txt  book.txt.gz  page.html      files; HTML is reduced to its text, .gz is unpacked
    corpus/    'corpus/*.txt'              every text file below a directory (sorted), or those a pattern names
    hf:NAME[@CONFIG][:SPLIT[:COLUMN]]      a Hugging Face dataset, streamed; OWNER/NAME works without "hf:"
"""

import glob
import gzip
import hashlib
import html.parser
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthetic.errors import DataError, LabError, UsageError

#: what is taken from a directory; a file named by itself may have any other suffix and is read as plain text
SUFFIXES = (".txt", ".html", ".htm", ".md", ".txt.gz", ".html.gz", ".htm.gz", ".md.gz")

_DATASET = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<config>[\w.-]+))?(:(?P<split>[^:]+))?(:(?P<column>[^:]+))?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?(:[^:/]+){0,2}")


@dataclass(frozen=True)
class Texts:
    """Documents that can be walked again and again.

    description  where they come from, for a store's manifest.
    documents    called for each walk; gives the documents in a fixed order.
    identity     a string that differs whenever the documents differ (content hash; name for a dataset).
    """

    description: str
    documents: Callable[[], Iterator[str]]
    identity: str

    def __iter__(self) -> Iterator[str]:
        return self.documents()


def as_texts(texts: "Texts | Iterable[str]") -> Texts:
    """`texts` as a `Texts`: a list of strings becomes one; raises UsageError for one string or a one-shot iterator."""
    if isinstance(texts, Texts):
        return texts
    if isinstance(texts, str):
        raise UsageError(f"texts is one string ({texts[:40]!r}...); give a list of strings, or read_text([path])")
    if not isinstance(texts, Sequence):
        raise UsageError(
            "texts must be walked more than once; give a list of strings, or what read_text returns, not an iterator"
        )
    documents = [_require_string(text, i) for i, text in enumerate(texts)]
    digest = hashlib.sha256()
    for text in documents:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return Texts(f"{len(documents)} strings", lambda: iter(documents), digest.hexdigest()[:16])


def read_text(sources: "str | Sequence[str]") -> Texts:
    """The documents that `--text` names (see the module's head for the forms).

    Files are read (and hashed) once here, so that a missing, empty or undecodable one is an error before any model
    runs. Raises UsageError for what cannot be found or holds no text, DataError for bytes that are not text.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise UsageError("no text was given; name files, a directory, a pattern or a dataset with --text")
    parts = [_hub(name) if _is_hub(name) else _local(name) for name in names]
    if len(parts) == 1:
        return parts[0]

    def documents() -> Iterator[str]:
        for part in parts:
            yield from part

    identity = hashlib.sha256("\n".join(part.identity for part in parts).encode()).hexdigest()[:16]
    return Texts(" + ".join(part.description for part in parts), documents, identity)


# ---- files -----------------------------------------------------------------------------------------------------


def _local(name: str) -> Texts:
    files = _files(name)
    digest, characters = hashlib.sha256(), 0
    for file in files:
        text = read_file(file)
        characters += len(text.strip())
        digest.update(b"%d:" % len(text) + text.encode("utf-8", "surrogatepass"))
    if not characters:
        raise UsageError(f"{name} holds no text ({len(files)} empty file{'s' * (len(files) != 1)}); name another")
    description = name if len(files) == 1 else f"{name} ({len(files)} files)"
    return Texts(description, lambda: map(read_file, files), digest.hexdigest()[:16])


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
        if not found:
            raise UsageError(f"directory {name} holds no text files; looked for {', '.join(SUFFIXES)}")
        return found
    if path.exists():
        return [path]
    if glob.has_magic(name):
        found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        if not found:
            raise UsageError(f"no file matches the pattern {name!r}; check it (quoted, so that the shell leaves it)")
        return found
    raise UsageError(f"text file {name!r} does not exist; for a Hugging Face dataset write hf:NAME")


def read_file(path: str | Path) -> str:
    """The text of one file: unpacked if it ends in .gz, without its markup if it is HTML.

    Raises UsageError when it cannot be opened and DataError, naming the byte, when it is not UTF-8 (an HTML file may
    declare another charset).
    """
    file = Path(path)
    suffixes = [suffix.lower() for suffix in file.suffixes]
    try:
        data = file.read_bytes()
        if suffixes[-1:] == [".gz"]:
            data = gzip.decompress(data)
            suffixes.pop()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file ({error}); unpack or fetch it again") from error
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    is_html = suffixes[-1:] in ([".html"], [".htm"])
    declared = re.search(rb"<meta[^>]{0,200}charset=[\"']?([\w-]+)", data[:4096], re.I) if is_html else None
    encoding = declared.group(1).decode() if declared else "utf-8"
    try:
        text = data.decode("utf-8-sig" if encoding.lower() == "utf-8" else encoding)
    except LookupError as error:
        raise DataError(f"{file} declares the unknown charset {encoding!r}; convert it to UTF-8") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not {encoding} text: byte {data[error.start]:#04x} at offset {error.start}; "
            "convert it, for example with iconv -f latin1 -t utf-8"
        ) from error
    return strip_html(text) if is_html else text


class _TextOfHtml(html.parser.HTMLParser):
    """Collects the text of a page: no markup, script or style; block elements end a line."""

    hidden = frozenset({"script", "style", "head", "template"})
    block = re.compile(
        "address|article|aside|blockquote|br|d[dlt]|div|fig(ure|caption)|footer|h[1-6]|header|hr|li|main|nav|[ou]l"
        "|p|pre|section|table|t[dhr]"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag in self.hidden
        if tag == "body":
            self._depth = 0  # a page may leave its <head> open
        if self.block.fullmatch(tag):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - (tag in self.hidden))
        if self.block.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self.parts.append(re.sub(r"\s+", " ", data))


def strip_html(page: str) -> str:
    """The visible text of an HTML page, one line per block element, runs of spaces made one."""
    parser = _TextOfHtml()
    parser.feed(page)
    parser.close()
    lines = (re.sub(r" +", " ", line).strip() for line in "".join(parser.parts).split("\n"))
    return "".join(line + "\n" for line in lines if line)


# ---- Hugging Face datasets -----------------------------------------------------------------------------------


def _is_hub(name: str) -> bool:
    if name.startswith("hf:"):
        return True
    return not Path(name).exists() and not name.lower().endswith(SUFFIXES) and bool(_HUB_ID.fullmatch(name))


def _hub(name: str) -> Texts:
    match = _DATASET.fullmatch(name.removeprefix("hf:"))
    if match is None:
        raise UsageError(f"dataset {name!r} is not of the form hf:NAME[@CONFIG][:SPLIT[:COLUMN]]")
    dataset, config, column = match["name"], match["config"], match["column"]
    split = match["split"] or "train"

    def documents() -> Iterator[str]:
        rows = iter(_open_dataset(name, dataset, config, split))
        first = next(rows, None)
        if first is None:
            raise UsageError(f"dataset {name!r} has no rows in split {split!r}")
        key = _text_column(name, first, column)
        yield _require_string(first[key], 0)
        for i, row in enumerate(rows, 1):
            yield _require_string(row[key], i)

    return Texts(name, documents, f"{dataset}@{config}:{split}:{column}")


def _open_dataset(name: str, dataset: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise LabError(f"{name!r} needs the datasets package: pip install 'sasa-lab[lm]'") from error
    try:
        return load_dataset(dataset, config, split=split, streaming=True)
    except Exception as error:  # the library raises many kinds, some of its own
        reason = str(error).strip().split("\n")[0][:200]
        raise LabError(
            f"{name!r} is no file here, and as a Hugging Face dataset it cannot be opened "
            f"({type(error).__name__}: {reason}); check the name and the network"
        ) from error


def _text_column(name: str, row: dict[str, Any], column: str | None) -> str:
    strings = [key for key, value in row.items() if isinstance(value, str)]
    if column is None and "text" in strings:
        return "text"
    if column is None and len(strings) == 1:
        return strings[0]
    if column in strings:
        return str(column)
    wanted = "none of them is named 'text'" if column is None else f"{column!r} is not one of them"
    raise UsageError(f"dataset {name!r}: columns of strings are {', '.join(strings) or 'none'}, and {wanted}; "
                     "name one as hf:NAME:SPLIT:COLUMN")  # fmt: skip


def _require_string(text: object, index: int) -> str:
    if not isinstance(text, str):
        raise UsageError(f"document {index} is {type(text).__name__}, not a string")
    return text
