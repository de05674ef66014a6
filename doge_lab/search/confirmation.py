"""The front trained again on fresh test data, from other seeds: what was chosen is not what is reported.

A model that breaks a promise then is struck off the front as one that the audit found out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from doge_lab.engine.protocol import FAILED
from doge_lab.engine.seeds import derived
from doge_lab.search.audit import Audit
from doge_lab.search.ledger import Ledger
from doge_lab.search.study import Confirmed, Unconfirmed


class Confirmation:
    """What is confirmed so far of one search's front."""

    def __init__(self, ledger: Ledger, audit: Audit, *, seed: int) -> None:
        self.ledger, self.audit, self.seed = ledger, audit, seed
        self.confirmed: Confirmed = ledger.study.user_attrs["confirmed"]
        self.unconfirmed: Unconfirmed = {}

    def jobs(self) -> Iterator[dict[str, Any]]:
        """A job for each seed of each candidate on the front that was not confirmed before, or tried by this search."""
        number = -1
        for candidate in self.ledger.results().front:
            first = candidate.trials[0]
            for index in range(self.ledger.space.search.confirm_seeds):
                seed = derived("confirm", self.seed, index)
                number -= 1
                done = self.confirmed.get(first.candidate, {}).keys() | self.unconfirmed.get(first.candidate, {}).keys()
                if str(seed) not in done:
                    job = self.ledger.job(number, {**first.config, "seed": seed}, "test")
                    yield {**job, "candidate": first.candidate, "trial": first.number}

    def keep(self, job: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        """Take a worker's answer."""
        candidate, seed = job["candidate"], str(job["run"]["seed"])
        if content["event"] == FAILED:
            self.unconfirmed.setdefault(candidate, {})[seed] = content["reason"]
            self.ledger.study.set_user_attr("unconfirmed", self.unconfirmed)
            if content.get("contract"):
                self.audit.note(job, {"reason": content["reason"]})
        else:
            self.confirmed.setdefault(candidate, {})[seed] = self.ledger.values(job["trial"], content["metrics"])
            self.ledger.study.set_user_attr("confirmed", self.confirmed)
