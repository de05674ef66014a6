"""The report of a search: a page for people, files for programs, a view of the terminal while it runs."""

import re
from pathlib import Path

from doge_lab.errors import UserError
from doge_lab.files import write_text_atomically
from doge_lab.report.files import front_json, run_file, run_yaml, space_yaml, struck_json, trials_csv
from doge_lab.search.front import Results

__all__ = ["write_report"]


def write_report(results: Results, directory: Path) -> dict[str, Path]:
    """Write the page, the files for programs and a run file per front model; name -> where it lies.

    Each file is replaced whole. Run files of models that have left the front are removed. Raises `UserError` for a
    file that cannot be written; the study keeps everything.
    """
    from doge_lab.report.page import page  # plotly and optuna take a second that reading a front does not need

    texts = {run_file(candidate): run_yaml(candidate) for candidate in results.front}
    texts["space.yaml"] = space_yaml(results)
    texts |= {"trials.csv": trials_csv(results), "front.json": front_json(results)}
    texts |= {"struck.json": struck_json(results), "report.html": page(results)}
    for name, text in texts.items():
        try:
            write_text_atomically(directory / name, text)
        except OSError as error:
            said = f"cannot be written ({error.strerror}); what is finished is kept: make room or move what is there"
            raise UserError(f"{said}, then: doge-lab report {directory}", str(directory / name)) from None
    for old in (directory / "front").glob("trial-*.yaml"):
        if re.fullmatch(r"trial-\d+\.yaml", old.name) and f"front/{old.name}" not in texts:
            old.unlink()
    return {name: directory / name for name in texts}
