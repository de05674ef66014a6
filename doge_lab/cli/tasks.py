"""`doge-lab tasks`: what a model can be asked."""

import argparse
from typing import TYPE_CHECKING, Any

from doge_lab.cli.options import add_json, in_flow, option_facts, print_json, wide_console

if TYPE_CHECKING:
    from doge_lab.tasks import Task


def add(commands: Any) -> None:
    parser = commands.add_parser("tasks", help="list the tasks", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this task, with its options")
    parser.add_argument("--ladder", action="store_true", help="rungs of difficulty, to be pasted under `tasks:`")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab import tasks

    found = [tasks.get(name) for name in ([options.name] if options.name else tasks.names())]
    rows = [_facts(task) | ({"rungs": _rungs(task)} if options.ladder else {}) for task in found]
    if options.json:
        print_json(rows)
    elif options.ladder:
        for row in rows:
            print(*(f"- {in_flow(rung)}" for rung in row["rungs"]), sep="\n")
    elif options.name:
        _print_options(*rows)
    else:
        _print_list(rows)
    return 0


def _facts(task: "type[Task]") -> dict[str, Any]:
    import sys

    from doge_lab.registry import summary_and_source

    summary, source = summary_and_source(sys.modules[task.__module__].__doc__ or "")
    return {
        "name": task.model_fields["type"].default,
        "summary": summary,
        "source": source,
        "memorised": task.memorised,
        "module": task.__module__,
        "options": [option for option in option_facts(task) if option["name"] != "type"],
    }


def _rungs(task: "type[Task]") -> list[dict[str, Any]]:
    """The task and each of its rungs, as a file writes them: what differs from the defaults."""
    from doge_lab.tasks import parse, rungs

    found = rungs(parse(task.model_fields["type"].default))
    return [{"type": rung.type, **rung.model_dump(mode="json", exclude_defaults=True)} for rung in found]


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "what is asked", box=None)
    for row in rows:
        table.add_row(f"[bold]{row['name']}[/bold]", escape(row["summary"]))
    wide_console().print(table)


def _print_options(row: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = wide_console()
    console.print(f"[bold]{row['name']}[/bold]  {escape(row['summary'])}", highlight=False)
    table = Table("option", "default", "what it is", box=None, padding=(0, 2, 0, 2))
    for option in row["options"]:
        table.add_row(option["name"], *map(escape, (in_flow(option["default"]), option["description"])))
    console.print(table, f"Source: {escape(row['source'])}", sep="\n", highlight=False)
