"""Running figures: measure, or keep the result at hand; then draw it from its file."""

import sys
import time
from typing import TYPE_CHECKING

from sasa_lab.report import write_report
from sasa_lab.results import draw, kept_result, read_result, result_file, save_figure_result
from synthetic.errors import Interrupted, LabError, UsageError, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from figures.registry import Context, Figure


def run_figure(figure: "Figure", context: "Context", force: bool = False) -> None:
    """Measure and draw one figure, saying what is done.

    A result of this code with the same profile, seeds and options is kept unless `force`; its pictures are drawn
    again. Raises UsageError for an option the figure does not have or a profile it cannot run.
    """
    for key in context.options:
        if key not in figure.options:
            raise unknown(f"option of figure {figure.name!r}", key, figure.options)
    if context.profile not in figure.budget:
        raise UsageError(
            f"figure {figure.name!r} has no profile {context.profile!r}; it has {', '.join(figure.budget)}"
        )
    file = result_file(context.out, figure.name, context.profile)
    if not force and (result := kept_result(figure.name, context)) is not None:
        tell(f"{figure.name}: kept {file} of {result.get('date')} (same code, profile, seeds and options; --force")
        tell("  measures again); its pictures are drawn anew")
    else:
        began = time.perf_counter()
        measured = figure.run(context)
        seconds = time.perf_counter() - began
        save_figure_result(figure, context, measured, seconds)
        tell(f"{figure.name}: measured in {seconds:.0f} s, {file}")
    for path in draw(figure, file):
        tell(f"  {path}")
    for finding in read_result(file).get("findings", []):
        tell(f"  {finding['sentence']}: {finding['status']}: {finding['text']}")


def command_for(figure: "Figure", profile: str) -> str:
    """The command line that runs a figure by name."""
    options = "".join(f" --option {name}=..." for name in figure.options) if figure.needs else ""
    shown = profile if profile in figure.budget else next(iter(figure.budget), profile)
    return f"sasa-lab figure {figure.name} --profile {shown}{options}"


def try_figure(figure: "Figure", context: "Context", force: bool) -> str | None:
    """Run a figure; returns None, or why it failed, so that the others still run. Interrupted is passed on."""
    try:
        run_figure(figure, context, force)
    except Interrupted:
        raise
    except LabError as error:
        return str(error)
    except Exception as error:
        import traceback

        traceback.print_exc()
        return f"{type(error).__name__}: {error} (a bug; traceback above)"
    return None


def run_figures(names: "Sequence[str]", context: "Context", force: bool) -> dict[str, str]:
    """Run figures one after another and write the report; name -> why, for those that failed.

    One that is interrupted still leaves a report of what is done.
    """
    from figures import figures

    failed = {}
    for name in names:
        tell(f"{name}: {figures[name].title} (at most {figures[name].budget.get(context.profile, 0):.0f} s)")
        try:
            why = try_figure(figures[name], context, force)
        except Interrupted:
            tell(f"report of what is done: {write_report(context.out)}")
            raise
        if why is not None:
            failed[name] = why
            tell(f"{name}: failed: {why}")
    return failed


def report_failures(failed: "Mapping[str, str]") -> int:
    """One sentence on stderr and exit status 1 where figures failed, else 0."""
    if failed:
        sys.stderr.write(f"sasa-lab: error: {len(failed)} figure(s) failed: {', '.join(failed)}; reasons above\n")
    return 1 if failed else 0


def tell(line: str) -> None:
    """A line of progress on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
