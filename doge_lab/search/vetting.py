"""No block enters a search before it has passed the contract, in every option that the space can sample.

Before the first trial options are varied one at a time and numbers taken at both ends of their range
(`space.alternatives`); a combination that was not among those, the matched width included, is examined before its
first candidate is trained.

A leak wins every naive search, so this cannot be switched off. What passed is remembered (`doge_lab.engine.checks`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from doge_lab.engine.checks import FAILED, KNOWN_FAULT, CheckCase, case_of, cases_of, remembered, verdict
from doge_lab.errors import UserError
from doge_lab.model import BlockRef
from doge_lab.search.config import Space
from doge_lab.search.possible import with_blocks
from doge_lab.search.space import alternatives


class Vetting:
    """The examination of a space's blocks: jobs for the workers, and what follows from their answers."""

    def __init__(self, space: Space, *, skip_failing: bool) -> None:
        self.allow_faults = space.search.allow_faults
        self.skip_failing = skip_failing
        self.cases = cases_in(space)
        self.left_out: dict[str, str] = {}
        """Name of a block that failed, where `skip_failing` leaves it out -> its first failed check."""
        self.verdicts: dict[CheckCase, str] = {}
        """What was examined -> its first failed check, empty when it passed."""

    def jobs(self) -> Iterator[dict[str, Any]]:
        """A job for each case that was not examined before. Raises `UserError` like `keep`."""
        for index, case in enumerate(self.cases):
            results = remembered(case)
            if results is None:
                yield {"job": -1 - index, "kind": "check", "case": asdict(case)}
            else:
                self._judge(case, results)

    def keep(self, job: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Take a worker's answer. Raises `UserError` when the block fails and is not to be left out."""
        case = CheckCase(**job["case"])
        if "results" in answer:
            self._judge(case, answer["results"])
        else:  # its process died, or the block cannot even be imported there
            self._judge(case, [{"name": "builds", "status": FAILED, "message": answer["reason"]}])

    def _judge(self, case: CheckCase, results: Sequence[Mapping[str, Any]]) -> None:
        said = self.verdicts[case] = verdict(case, results, allow_faults=self.allow_faults)
        if not said:
            return
        if self.skip_failing:
            self.left_out.setdefault(case.type, said)
        elif all(result["status"] == KNOWN_FAULT for result in results):
            raise UserError(f"{said}. It is a known fault of a published form; say search.allow_faults: true")
        else:
            raise UserError(f"{said}. Mend it, or say --skip-failing to search without it")

    def unexamined(self, run: Mapping[str, Any]) -> list[CheckCase]:
        """The blocks of a resolved run, matched width included, in combinations that nobody has looked at.

        Raises `UserError` when one is known to fail.
        """
        found = []
        for case in cases_of(run):
            if case not in self.verdicts and (results := remembered(case)) is not None:
                self.verdicts[case] = verdict(case, results, allow_faults=self.allow_faults)
            said = self.verdicts.get(case)
            if said:
                raise UserError(said)
            if said is None:
                found.append(case)
        return found

    def note(self, answer: Mapping[str, Any]) -> None:
        """Keep what a worker found before it trained a candidate; a failure there fails that trial alone."""
        case = CheckCase(**answer["case"])
        self.verdicts[case] = verdict(case, answer["results"], allow_faults=self.allow_faults)


def cases_in(space: Space) -> list[CheckCase]:
    """Every block of the space, in every option that differs, each once; at further widths its first form alone."""
    places: list[list[BlockRef]] = []
    with_blocks(space.run["model"], "model", places)
    first, *others = (int(width) for width in alternatives(space.run["model"]["d_model"]))
    found = [case_of(ref, first) for forms in places for ref in forms]
    found += [case_of(forms[0], width) for width in others for forms in places]
    return list(dict.fromkeys(found))
