"""The report: self-contained, complete, honest about the worst finding; made from result files alone."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figures import figures, load_all
from sasa_lab import report
from sasa_lab.docs import without_arrays
from sasa_lab.sentences import STATUSES, judge, sentences
from synthetic.errors import DataError

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Checks nesting; collects ids, references and the text of each sentence's row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.rows: dict[str, str] = {}
        self.row: str | None = None
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
                if value.startswith("sentence-"):
                    self.row = value.removeprefix("sentence-")
            if key in ("href", "src", "xlink:href"):
                self.references.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.row = None

    def handle_data(self, data):
        if self.row is not None:
            self.rows[self.row] = self.rows.get(self.row, "") + " " + data


def _page(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_with_nothing_at_hand_it_says_how_to_begin(lab, here):
    assert lab("report").status == 0
    page = _page(Path("results"))
    assert "sasa-lab reproduce --profile quick" in Path("results/report.html").read_text()
    assert set(page.rows) == set(sentences())
    assert all("not yet run" in row for row in page.rows.values())


def test_it_is_one_file_with_every_picture_table_and_number(lab, toy, here):
    lab("figure", "toy")
    lab("figure", "toy", "--profile", "standard")
    text = Path("results/report.html").read_text()
    page = _page(Path("results"))
    assert len(page.ids) == len(set(page.ids)), "two pictures share ids"
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert {r.removeprefix("#") for r in page.references if r.startswith("#")} <= set(page.ids)
    assert text.count("<svg") == 2 and "31.25" in text and "&lt;relu&gt;" in text and "<relu>" not in text
    assert "seeds 0, 1, 2" in text and "toy/standard/result.json" in text
    assert "supported" in page.rows["splitting"] and "31 atoms & more" in page.rows["splitting"]


def test_a_large_svg_is_replaced_by_its_png_and_long_json_is_cut(lab, toy, here, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_SVG", 10)
    monkeypatch.setattr(report, "LONGEST_JSON", 50)
    lab("figure", "toy")
    text = Path("results/report.html").read_text()
    assert "<svg" not in text and "data:image/png;base64," in text
    assert "cut after 50 characters; the whole is in results/toy/quick/result.json" in text


def test_an_evaluation_stands_in_it_with_its_directions(lab, here):
    size = ["--set", "n_groups=8", "--steps", "3", "--batch-size", "32"]
    path = lab("train", "--arch", "sasa", "--world", "three-manifolds", *size).out.split()[-1]
    done = lab("evaluate", path, "--world", "three-manifolds", "--rows", 200)
    assert done.status == 0, done.err
    result = json.loads(next(Path("results/evaluate").rglob("result.json")).read_text())
    value = result["metrics"]["explained_variance"]["explained_variance"]["value"]
    for text in (done.out, Path("results/report.html").read_text()):
        assert "explained_variance.explained_variance \u2191" in text and report.show(value) in text
    assert result["settings"]["model"]["n_groups"] == 8 and result["rows"] == 200


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(sorted(sentences())), st.sampled_from(STATUSES[:-1])), max_size=8))
def test_a_sentence_shows_its_worst_finding(drawn):
    results = {
        Path(str(i)): {"findings": [{"sentence": name, "status": status, "text": ""}]}
        for i, (name, status) in enumerate(drawn)
    }
    for entry in judge(results):
        found = [status for name, status in drawn if name == entry.id]
        worst = next((status for status in STATUSES if status in found), "not yet run")
        assert entry.status == worst and len(entry.findings) == len(found)


@pytest.mark.parametrize("change", [{"sentence": "splittin"}, {"status": "proved"}])
def test_a_finding_it_does_not_know_is_named_with_its_file(change):
    finding = {"sentence": "splitting", "status": "supported", "text": "", **change}
    with pytest.raises(DataError, match=r"there.json.*" + next(iter(change.values()))):
        judge({Path("there.json"): {"findings": [finding]}})


def test_sentences_name_only_figures_of_the_design():
    load_all()
    named = {name for entry in sentences().values() for name in entry.figures}
    designed = {
        *("manifolds", "temporal", "tiling", "descent", "consolidation", "rank-window", "samples", "splitting"),
        *("rank-recovery", "matched-budget", "absorption", "causal", "published-benchmarks"),
        *("planted-absorption", "sample-growth", "recovery"),
        *("token-budget", "ablation", "concepts", "feature-clusters"),
    }
    assert named <= designed and set(figures.names()) <= designed
    assert {"splitting", "consolidation", "temporal"} <= set(sentences())


def test_docs_get_the_picture_and_its_numbers_without_points(lab, toy, here):
    from figures.registry import figures as registered

    registered._items["manifolds"] = registered._items.pop("toy")
    object.__setattr__(registered._items["manifolds"], "name", "manifolds")
    lab("figure", "manifolds")
    assert lab("report", "--docs").status == 0
    assert Path("docs/manifolds.png").read_bytes() == Path("results/manifolds/quick/figure.png").read_bytes()
    assert json.loads(Path("docs/manifolds.result.json").read_text())["tables"][0]["title"] == "Counts"


def test_only_long_lists_of_numbers_are_left_out():
    value = {"points": [[0.0, 1.0]] * 500, "counts": [1, 2], "rows": [{"a": 1}] * 300}
    kept = without_arrays(value)
    assert kept["points"] == "500 entries left out here" and kept["counts"] == [1, 2] and kept["rows"] == value["rows"]
