"""No model stands on the front before another process has looked at it again; who fails is struck, with the reason.

A finished trial cannot be changed, so the study remembers beside it what was found, by the candidate's fingerprint and
the seed: the same weights are not asked twice.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from doge_lab.engine.protocol import FAILED
from doge_lab.search.front import Audits
from doge_lab.search.ledger import Ledger


class Audit:
    """What was found so far of one search's front."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.audited: Audits = ledger.study.user_attrs.get("audited", {})

    def jobs(self) -> Iterator[dict[str, Any]]:
        """A job for each trial of each candidate on the front that was not looked at."""
        number = -1
        for candidate in self.ledger.results().front:
            for trial in candidate.trials:
                if str(trial.seed) not in self.audited.get(trial.candidate, {}):
                    number -= 1
                    yield {
                        **self.ledger.job(number, trial.config, "validation"),
                        "kind": "audit",
                        "allow_faults": self.ledger.space.search.allow_faults,
                        "candidate": trial.candidate,
                    }

    def keep(self, job: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        """Take a worker's answer; a model that ends the process which looks at it is struck as well."""
        failed = content["event"] == FAILED
        self.note(job, {"reason": content["reason"]} if failed else content["found"])

    def note(self, job: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Remember what was found of the job's candidate and seed; one with a `reason` is struck off the front."""
        self.audited.setdefault(job["candidate"], {})[str(job["run"]["seed"])] = dict(found)
        self.ledger.changes += 1
        self.ledger.study.set_user_attr("audited", self.audited)
