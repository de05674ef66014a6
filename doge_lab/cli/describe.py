"""`doge-lab describe`: what a model costs, before any training."""

import argparse
from typing import TYPE_CHECKING, Any

from doge_lab.cli.options import add_file, add_json, consent, in_range, print_json
from doge_lab.errors import in_file

if TYPE_CHECKING:
    from doge_lab.cost import Cost

DEFAULT_CONTEXT = 2048
MOST_CONTEXT = 10**9


def add(commands: Any) -> None:
    parser = commands.add_parser("describe", help="what a model costs", description=__doc__)
    add_file(parser, "a model or run file")
    parser.add_argument("--context", type=int, help=f"tokens; the longest that the tasks score, else {DEFAULT_CONTEXT}")
    parser.add_argument("--measure", action="store_true", help="decode with a real model and weigh the cache it holds")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.config import load
    from doge_lab.cost import held_cache_bytes
    from doge_lab.model import CausalLM

    in_range("--context", options.context, 1, MOST_CONTEXT)
    consent(options)
    with in_file(options.file):
        run = load(options.file, options.set).resolved()
        context = options.context or (run.context if run.tasks else DEFAULT_CONTEXT)
        cost = run.cost(context)
    facts = cost.dump()
    if options.measure:
        facts["cache_bytes_held"] = held_cache_bytes(CausalLM.build(run.model).eval(), context)
    if options.json:
        print_json({"name": run.name, **facts, "model": run.dump()["model"]})
    else:
        _print(cost, facts.get("cache_bytes_held"))
    return 0


def _print(cost: "Cost", held: int | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "block", "params", "active", "FLOPs/token", "cache bytes", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for index, layer in enumerate(cost.layers):
        for block in (layer.sequence, layer.state):
            numbers = (block.params, block.active_params, block.flops_per_token, block.cache_bytes)
            table.add_row(str(index), block.type, *(f"{number:,}" for number in numbers))
    total = (cost.params, cost.active_params, cost.flops_per_token, cost.cache_bytes)
    table.add_row("", "[bold]model[/bold]", *(f"[bold]{number:,}[/bold]" for number in total))
    console = Console()
    console.print(table)
    console.print(
        f"{cost.embedding_params:,} of the parameters are embedding. FLOPs of one decoding step and cache bytes of one "
        f"sequence are at {cost.context:,} tokens, per-token entries in {cost.cache_dtype}."
    )
    if held is not None:
        console.print(f"Held by a live cache after decoding: {held:,} bytes.")
