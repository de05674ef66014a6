"""`doge-lab schema`: JSON Schema of the files, for completion in editors."""

import argparse
from typing import Any

from doge_lab.cli.options import print_json


def add(commands: Any) -> None:
    parser = commands.add_parser("schema", help="JSON Schema of run and space files", description=__doc__)
    parser.add_argument("--of", choices=["space", "run"], default="space", help="space (default) accepts both")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; a schema is JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.schema import run_schema, space_schema

    print_json(space_schema() if options.of == "space" else run_schema())
    return 0
