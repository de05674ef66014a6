"""`doge-lab check`: whether a block keeps the contract."""

import argparse
from typing import Any

from doge_lab.cli.options import add_json, facts_alone, in_range, look_here, print_json
from doge_lab.errors import UserError
from doge_lab.yamlfile import with_overrides

_MARKS = {"passed": "[green]pass[/]", "failed": "[red]FAIL[/]", "known_fault": "[yellow]known[/]", "skipped": "skip"}


def add(commands: Any) -> None:
    parser = commands.add_parser("check", help="check a block against the contract", description=__doc__)
    parser.add_argument("block", nargs="?", metavar="NAME|package.module:Class", help="the block to check")
    parser.add_argument("--all", action="store_true", help="check every block of the registry")
    parser.add_argument("--full", action="store_true", help="more splits, types and lengths; slower")
    parser.add_argument("--d-model", type=int, default=32, help="width to build it with (default 32)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the block (repeatable)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab import registry
    from doge_lab.testing import run_checks

    if bool(options.block) == options.all:
        raise UserError("name one block, or say --all")
    in_range("--d-model", options.d_model, 1, 4096)
    look_here()
    if options.all:
        found = [(name, registry.get(kind, name)) for kind in registry.KINDS for name in registry.names(kind)]
    else:
        found = [(options.block, block) for _, block in registry.find(options.block)]
    block_options = with_overrides({}, options.set)
    rows = []
    for name, block in found:
        with facts_alone():
            _validate(block, options.d_model, block_options)
            results = run_checks(block, block_options, d_model=options.d_model, full=options.full)
        for result in results:
            rows.append({"block": name, "kind": block.kind, **vars(result)})
            if not options.json:
                _print(rows[-1])
    if options.json:
        print_json(rows)
    return 0 if all(row["passed"] for row in rows) else 1


def _validate(block: Any, d_model: int, options: dict[str, Any]) -> None:
    """Options that the block refuses are the user's mistake, not a failed check."""
    import torch

    with torch.device("meta"):
        try:
            block(d_model, **options)
        except UserError as error:
            raise error.under(block.__name__) from None
        except Exception:
            return  # whatever a broken block raises is for its checks to report, by name


def _print(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console().print(
        f"{_MARKS[row['status']]}  {row['block']}  {row['name']}  {escape(row['message'])}", highlight=False
    )
