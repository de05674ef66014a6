"""`doge-lab blocks`: what is on the shelf."""

import argparse
from typing import TYPE_CHECKING, Any

from doge_lab.cli.options import add_json, in_flow, option_facts, print_json, wide_console

if TYPE_CHECKING:
    from doge_lab.registry import BlockInfo


def add(commands: Any) -> None:
    parser = commands.add_parser("blocks", help="list the blocks", description=__doc__)
    parser.add_argument("--kind", choices=["sequence", "state"], help="only this kind")
    parser.add_argument("--options", action="store_true", help="with the options of each and those worth searching")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab import registry

    found = [block for block in registry.catalogue() if options.kind in (None, block.kind)]
    rows = [_facts(block) | (_options(block) if options.options else {}) for block in found]
    if options.json:
        print_json(rows)
    elif options.options:
        _print_options(rows)
    else:
        _print_list(rows)
    return 0


def _facts(block: "BlockInfo") -> dict[str, Any]:
    return {
        "name": block.name,
        "kind": block.kind,
        "summary": block.summary,
        "source": block.source,
        "module": block.where,
    }


def _options(info: "BlockInfo") -> dict[str, Any]:
    """What only the class itself knows, so that a plain list imports no block."""
    from doge_lab import registry

    block = registry.get(info.kind, info.name)
    return {
        "options": option_facts(block.Config),
        "width_option": block.width_option,
        "search_space": block.search_space,
    }


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("kind", "name", "what it is", box=None)
    for row in rows:
        table.add_row(row["kind"], f"[bold]{row['name']}[/bold]", row["summary"])
    wide_console().print(table)


def _print_options(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = wide_console()
    for row in rows:
        console.print(f"[bold]{row['name']}[/bold] ({row['kind']})  {escape(row['summary'])}", highlight=False)
        table = Table("option", "default", "worth searching", "what it is", box=None, padding=(0, 2, 0, 2))
        for option in row["options"]:
            hole = row["search_space"].get(option["name"])
            searched = "matched" if option["name"] == row["width_option"] else ("" if hole is None else in_flow(hole))
            cells = (str(option["default"]), searched, option["description"])
            table.add_row(option["name"], *map(escape, cells))
        console.print(table, "", sep="\n")
