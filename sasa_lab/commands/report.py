"""`sasa-lab report`: one HTML page from the result files."""

import sys
from dataclasses import dataclass
from pathlib import Path

from sasa_lab.docs import copy_documents
from sasa_lab.report import write_report


@dataclass(frozen=True)
class Options:
    """Write OUT/report.html from every result file under OUT: pictures, tables, numbers, settings, in one file.

    It opens with the sentences of the paper and what the results say about each. Nothing is measured again.

    Example: sasa-lab report --out results
    """

    out: Path = Path("results")
    """directory with the results; the report is written into it"""
    docs: bool = False
    """also copy the pictures that the README shows into docs/, each with its result file (for maintainers)"""


def run(options: Options) -> int:
    if options.docs:
        for path in copy_documents(options.out, Path("docs")):
            sys.stdout.write(f"copied {path}\n")
    sys.stdout.write(f"report: {write_report(options.out)}\n")
    return 0
