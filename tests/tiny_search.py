"""Searches that end in a fraction of a second, for tests: a space, and a pool without processes."""

import json
from pathlib import Path

import yaml

from doge_lab.engine.pool import DONE, FAILED
from doge_lab.engine.worker import do
from doge_lab.search.config import parse_space
from doge_lab.search.coordinator import Coordinator
from doge_lab.testing import run_checks

TINY = Path(__file__).parent.parent / "search_spaces" / "tiny.yaml"


class InProcess:
    """Stands in for the pool of worker processes where a test is about something else."""

    def __init__(self, devices, allow_import=(), job_timeout=None):
        self.jobs, self.answers = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    idle = property(lambda self: not self.jobs)
    running = property(lambda self: list(self.jobs))

    def submit(self, job):
        self.jobs.append(job)

    def wait(self):
        if not self.answers:
            event, facts = do("cpu", through_json(self.jobs[-1]), self.say)
            self.say(event, **facts)
        (event, content), job = self.answers.pop(0), self.jobs[-1]
        if event in (DONE, FAILED):
            self.jobs.pop()
        return event, job, content

    def say(self, event, **facts):
        self.answers.append((event, {"event": event, **through_json(facts)}))


def few_checks(block, options, *, d_model, full, on_result):
    """Those that the blocks of these tests fail."""
    few = ["tokens_independent", "parameters_learn", "router_usage"]
    return run_checks(block, options, d_model=d_model, only=few, on_result=on_result)


def through_json(content):
    return json.loads(json.dumps(content))


def tiny(state=("mlp", "none"), **search):
    written = yaml.safe_load(TINY.read_text())
    written["model"]["layers"] = [{"sequence": "none", "state": {"choice": [plain(block) for block in state]}}]
    written["tasks"] = written["tasks"][:1]
    objectives = {"cache_bytes": "minimize", "capacity.bits": "maximize"}
    brief = {"objectives": objectives, "sampler": "random", "trials": 4, "confirm_seeds": 1}
    return {**written, "search": {**brief, **search}}


def plain(block):
    """A block with its defaults: a bare name would bring its own search space."""
    return {"type": block} if isinstance(block, str) and block != "none" else block


def search(written, out, **options):
    return Coordinator(parse_space(written, "test"), out, ["cpu"], **options).run()
