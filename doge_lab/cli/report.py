"""`doge-lab report`: write a search's report again from its study."""

import argparse
import json
from pathlib import Path
from typing import Any

from doge_lab.cli.options import add_json, print_json, wide_console


def add(commands: Any) -> None:
    parser = commands.add_parser("report", help="write a search's report again", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the --out folder of a search")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.report import write_report
    from doge_lab.report.honesty import outdated_lines
    from doge_lab.report.pairs import warnings
    from doge_lab.report.table import front_table
    from doge_lab.search.study import read_results

    results = read_results(options.directory)
    written = write_report(results, options.directory)
    if options.json:
        print_json(json.loads(written["front.json"].read_text(encoding="utf-8")))
        return 0
    console = wide_console()
    console.print(front_table(results))
    for line in (*outdated_lines(results), *warnings(results)):
        console.print(line, markup=False, soft_wrap=True)
    for path in written.values():
        console.print(str(path), highlight=False, soft_wrap=True)
    return 0
