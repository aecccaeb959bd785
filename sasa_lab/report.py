"""One self-contained HTML page made from result files alone: sentences, pictures, tables, numbers, settings.

Nothing is measured or drawn here. Pictures are embedded (SVG inline, or the PNG where the SVG is large), styles are
inline, so the file can be sent by mail and opened anywhere.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from sasa_lab.profiles import PROFILES
from sasa_lab.results import find_results, lab_version, read_result
from sasa_lab.sentences import Sentence, judge
from sasa_theory.files import write_text

#: an SVG larger than this is replaced by its PNG
LARGEST_SVG = 1_000_000
#: JSON longer than this is cut, with the path of the whole file
LONGEST_JSON = 200_000
DASH = "\u2014"
ARROWS = {"higher": " ↑", "lower": " ↓"}
ARROW_NOTE = "↑ higher is better, ↓ lower is better; numbers without an arrow only say what was measured."


def write_report(out: Path) -> Path:
    """Write OUT/report.html from every result file under `out`; returns its path."""
    return write_text(out / "report.html", page(out))


def page(out: Path) -> str:
    """The report's HTML. Raises DataError for a result file that cannot be read."""
    results = {path: read_result(path) for path in find_results(out)} if out.is_dir() else {}
    ordered = sorted(results.items(), key=lambda item: _place(item[1]))
    judged = judge(dict(ordered))
    body = [
        "<h1>sasa-lab: what holds, and what was measured</h1>",
        f'<p class="soft">Claims of <i>Subspace-Aware Sparse Autoencoders</i> (arXiv:2606.06333), checked by sasa-lab '
        f"{escape(lab_version())}. Made from the result files under <code>{escape(str(out))}</code>. The sentences are "
        "this project's wording of the paper's claims.</p>",
        _sentence_table(judged),
        *([] if results else [_how_to_begin()]),
        *(_section(out, file, result) for file, result in ordered),
    ]
    style = (package_files("sasa_lab") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>sasa-lab report</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def metrics_table(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of an evaluation's numbers (`sasa_theory.evaluation.evaluate`), arrows beside the names."""
    rows = [
        [
            f"{calculator}.{name}{ARROWS.get(entry['better'], '')}",
            _short(entry["value"]),
            entry["unit"],
            entry["meaning"],
        ]
        for calculator, numbers in metrics.items()
        for name, entry in numbers.items()
    ]
    return ["number", "value", "unit", "meaning"], rows


def show(value: Any) -> str:
    """A cell as text: numbers to four digits, None as a dash."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _place(result: Mapping[str, Any]) -> tuple[int, str, int]:
    """Verdicts first, then figures by name, the largest profile first; all else after them."""
    profile = result.get("profile")
    return (
        {"verification": 0, "figure": 1}.get(str(result.get("kind")), 2),
        str(result.get("name")),
        -PROFILES.index(profile) if profile in PROFILES else 0,
    )


def _sentence_table(judged: Iterable[Sentence]) -> str:
    rows = []
    for entry in judged:
        findings = "".join(
            f'<li><a href="#{_anchor(finding.source)}">{escape(finding.source)}</a> ({escape(finding.status)}): '
            f"{escape(finding.text)}</li>"
            for finding in entry.findings
        )
        sources = [", ".join(entry.claims), ", ".join(entry.figures)]
        rows.append(
            f'<tr id="sentence-{entry.id}"><td class="status {_slug(entry.status)}">{entry.status}</td>'
            f'<td class="soft">{escape(entry.part)}</td>'
            f"<td>{escape(entry.sentence)}{f'<ul class=findings>{findings}</ul>' if findings else ''}</td>"
            f'<td class="soft">{escape("; ".join(part for part in sources if part)) or DASH}</td></tr>'
        )
    return (
        '<div class="scroll"><table class="sentences"><thead><tr><th>status</th><th>part</th>'
        "<th>sentence of the paper</th><th>claims; figures</th></tr></thead><tbody>"
        + "".join(rows)
        + '</tbody></table></div>\n<p class="soft">A sentence shows the worst status among its findings.</p>'
    )


def _how_to_begin() -> str:
    return (
        "<h2>Nothing to show yet</h2>\n<p>No result file was found. Make some, then write this page again:</p>\n"
        "<pre>sasa-lab reproduce --profile quick      # figures, about ten minutes on two cores\n"
        "sasa-lab verify                         # every claim, about three minutes\n"
        "sasa-lab train --world three-manifolds --arch sasa\n"
        "sasa-lab evaluate CHECKPOINT --world three-manifolds\nsasa-lab report</pre>"
    )


def _section(out: Path, file: Path, result: Mapping[str, Any]) -> str:
    name = " ".join(str(result[key]) for key in ("name", "profile") if key in result)
    parts = [
        f'<h2 id="{_anchor(name)}">{escape(str(result.get("title", name)))}</h2>',
        _facts(out, file, result),
        *(
            f'<p><span class="status {_slug(entry["status"])}">{escape(entry["status"])}</span> '
            f"{escape(entry['text'])}</p>"
            for entry in result.get("findings", [])
        ),
        *_pictures(file.parent),
        *(_table(table["title"], table["columns"], table["rows"], table["note"]) for table in result.get("tables", [])),
    ]
    if "metrics" in result:
        parts.append(_table("Numbers", *metrics_table(result["metrics"]), ARROW_NOTE))
    parts.append(_json("settings", result.get("settings", {}), file))
    parts.append(_json("the numbers behind it (result.json)", result, file))
    return "\n".join(parts)


def _facts(out: Path, file: Path, result: Mapping[str, Any]) -> str:
    """One line: profile, seeds, time, device, versions, date, file."""
    facts = [f"{key} {result[key]}" for key in ("profile", "commit") if result.get(key)]
    if result.get("seeds"):
        facts.insert(1, f"seeds {', '.join(map(str, result['seeds']))}")
    if "seconds" in result:
        budget = f" (budget {result['budget_seconds']:.0f} s)" if "budget_seconds" in result else ""
        facts.append(f"ran {result['seconds']:.0f} s{budget}")
    if "device" in result:
        facts.append(f"{result['device']}: {result.get('device_name')}, {result.get('threads')} threads")
    facts += [f"{package} {version}" for package, version in result.get("versions", {}).items()]
    facts += [str(result[key]) for key in ("date",) if key in result]
    facts.append(str(file.relative_to(out)))
    return f'<p class="facts">{escape(" · ".join(facts))}</p>'


def _pictures(folder: Path) -> list[str]:
    """Every picture beside a result file, the main one first."""
    stems = {path.stem for path in folder.glob("*.svg")} | {path.stem for path in folder.glob("*.png")}
    shown = []
    for stem in sorted(stems, key=lambda stem: (stem != "figure", stem)):
        svg, png = folder / f"{stem}.svg", folder / f"{stem}.png"
        if svg.is_file() and (svg.stat().st_size <= LARGEST_SVG or not png.is_file()):
            picture = _inline_svg(svg.read_text(encoding="utf-8"), f"{folder.parent.name}-{folder.name}-{stem}")
        else:
            data = base64.b64encode(png.read_bytes()).decode()
            picture = f'<img alt="{escape(stem)}" src="data:image/png;base64,{data}">'
        shown.append(f"<figure>{picture}</figure>")
    return shown


def _inline_svg(text: str, prefix: str) -> str:
    """An SVG document as an element: no prolog, no fixed size, ids made unique on a page with several pictures."""
    element = text[text.index("<svg") :]
    # the fixed hash salt gives equal ids to equal shapes of different pictures
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f"{head}>{rest}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> str:
    numeric = [
        any(isinstance(row[i], int | float) for row in rows)
        and all(row[i] is None or isinstance(row[i], int | float) for row in rows)
        for i in range(len(columns))
    ]
    mark = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f"<th{m}>{escape(str(column))}</th>" for m, column in zip(mark, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{escape(show(cell))}</td>" for m, cell in zip(mark, row, strict=True)) + "</tr>"
        for row in rows
    )
    below = f'<p class="soft">{escape(note)}</p>' if note else ""
    return (
        f'<h3>{escape(title)}</h3>\n<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{below}"
    )


def _json(title: str, value: Any, file: Path) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if len(text) > LONGEST_JSON:
        text = text[:LONGEST_JSON] + f"\n... cut after {LONGEST_JSON} characters; the whole is in {file}"
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _short(value: Any) -> Any:
    """A number as it is; of a long list its length and mean, so that a table stays one."""
    if isinstance(value, list) and value and all(isinstance(item, int | float) or item is None for item in value):
        numbers = [item for item in value if item is not None]
        if len(value) > 8 and numbers:
            return f"{len(value)} values, mean {show(sum(numbers) / len(numbers))}"
        return ", ".join(show(item) for item in value)
    if isinstance(value, list | dict):
        return f"{len(value)} entries"
    return value


def _anchor(name: str) -> str:
    return "result-" + _slug(name)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
