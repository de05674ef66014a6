"""`doge-lab blocks`: what is on the shelf."""

import argparse
from typing import Any

from doge_lab.cli.options import add_json, print_json, wide_console


def add(commands: Any) -> None:
    parser = commands.add_parser("blocks", help="list the blocks", description=__doc__)
    parser.add_argument("--kind", choices=["sequence", "state"], help="only this kind")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab import registry

    found = [block for block in registry.catalogue() if options.kind in (None, block.kind)]
    if options.json:
        print_json(
            [
                {"name": b.name, "kind": b.kind, "summary": b.summary, "source": b.source, "module": b.where}
                for b in found
            ]
        )
        return 0
    from rich.table import Table

    table = Table("kind", "name", "what it is", box=None)
    for block in found:
        table.add_row(block.kind, f"[bold]{block.name}[/bold]", block.summary)
    wide_console().print(table)
    return 0
