"""What a search shows in the terminal while it runs: the front so far, how far it is, how long it will take."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from doge_lab.report.labels import duration, model_label, number, objective_title, plural, printable
from doge_lab.report.table import FrontRow, front_rows, rows_table
from doge_lab.search.front import Direction, Trial, candidates, front

_FINISHED = ("complete", "rejected", "failed")
_TRAINED = ("complete", "failed")
_OTHER_LINES = 10
"""Lines of the screen that the front's rows must leave free: heading, progress, counts, note."""


class LiveFront:
    """A view that redraws itself on a terminal, and elsewhere writes one plain line per finished trial.

    total: trials to train; those rejected before training are counted apart. The first `update` tells what was
    already there when a search is resumed: done, but no measure of how fast this machine is.
    """

    def __init__(
        self,
        objectives: Mapping[str, Direction],
        total: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.objectives, self.total, self.clock = objectives, total, clock
        self.console = console or Console()
        self.counts: Counter[str] = Counter()
        self.running, self.note = 0, ""
        self._started = clock()
        self._seen: set[int] | None = None
        self._before = 0
        self._rows: list[FrontRow] = []
        redraws = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = Live(console=self.console, get_renderable=self._render, transient=True) if redraws else None

    def __enter__(self) -> "LiveFront":
        self._started = self.clock()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if error is None or self._seen is not None:  # refused before it began: the error says enough
            self._print(self._status())

    def update(self, trials: Sequence[Trial], running: int, note: str = "") -> None:
        """Show all `trials` of the study so far; `running` are being trained; `note` says what is going on."""
        finished = [trial for trial in trials if trial.state in _FINISHED]
        self.counts = Counter(trial.state for trial in finished)
        self.running, self.note = running, printable(note)
        if self._seen is None:
            self._before = self._done
            # Candidates may have been rejected before the first was trained: that alone is not a resumed search.
            self._seen = {trial.number for trial in finished} if self._before else set()
            if self._before and not self._live:
                self._print(f"resuming: {self._status()}")
        new = [trial for trial in finished if trial.number not in self._seen]
        self._seen.update(trial.number for trial in new)
        if self._live:
            if not self._rows or any(trial.state == "complete" for trial in new):
                self._rows = front_rows(front(candidates(trials, {}), self.objectives), self.objectives)
            return
        for trial in new:
            self._print(f"{self._line(trial)} | {self._progress()}")

    @property
    def _done(self) -> int:
        return sum(self.counts[state] for state in _TRAINED)

    def _left(self) -> str:
        """Time left, by the throughput of what was trained since this view began."""
        trained, remaining = self._done - self._before, self.total - self._done
        if remaining <= 0:
            return "nothing left"
        if not trained:
            return "time left unknown"
        return f"{duration((self.clock() - self._started) / trained * remaining)} left"

    def _progress(self) -> str:
        return f"{self._done}/{self.total}, {self._left()}"

    def _status(self) -> str:
        counts = ", ".join(f"{self.counts[state]:,} {state}" for state in _FINISHED)
        elapsed = duration(self.clock() - self._started)
        return f"{self._done}/{self.total} trained: {counts}, {self.running} running; {elapsed} so far, {self._left()}"

    def _line(self, trial: Trial) -> str:
        """One finished trial in words."""
        said = [f"trial {trial.number} {trial.state}"]
        if trial.state == "complete":
            said += [f"{objective_title(name)} {number(trial.values[name])}" for name in self.objectives]
        if trial.config:
            said.append(model_label(trial.config))
        if trial.state != "complete":
            said.append(printable(trial.reason or "no reason recorded"))
        return " | ".join(said)

    def _print(self, line: str) -> None:
        # Names come from files: nothing in them is markup, and a line is never broken, so that logs can be searched.
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        """Drawn by rich's own thread a few times a second: reads, never computes a front."""
        rows = max(1, self.console.height - _OTHER_LINES)
        bar = Table.grid(padding=(0, 1))
        shown = Text(f"{self._done}/{self.total}  {duration(self.clock() - self._started)}  {self._left()}")
        bar.add_row(ProgressBar(total=max(1, self.total), completed=self._done, width=30), shown)
        states = [(self.counts[state], state) for state in _FINISHED] + [(self.running, "running")]
        models = len(self._rows)
        said = ", ".join(f"{count:,} {state}" for count, state in states)
        parts: list[RenderableType] = [
            bar,
            Text(f"{said}; {models} {plural(models, 'model')} on the front", style="dim"),
        ]
        if self.note:
            parts.append(Text(self.note, style="dim", no_wrap=True, overflow="ellipsis"))
        if self._rows:
            parts += [Text(), rows_table(self._rows, self.objectives, limit=rows)]
        return Group(*parts)
