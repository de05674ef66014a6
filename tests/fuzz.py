"""What a user or a disk can hand to `doge-lab`, broken at random: `python tests/fuzz.py --mutations 500 --seed 0`.

Each mutation breaks a file or a word of a command that works and runs the command in a child process of its own. It
must end within 10 s of processor time and 2 GB more memory than it began with, without a traceback, with code 0, 1, 2
or 130, and code 2 comes with one line. A mutation is repeated by `--only NUMBER` with the same seed.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from fuzz_mutations import broken_bytes, broken_word
from tiny_search import InProcess

from doge_lab.cli import main
from doge_lab.config import load
from doge_lab.model import CausalLM
from doge_lab.optim import build_optimizer
from doge_lab.stored import CHECKPOINT, WEIGHTS
from doge_lab.train import Progress, save_checkpoint

CPU_SECONDS, WALL_SECONDS, GIGABYTES = 10, 90, 2
CODES = (0, 1, 2, 130)
MODEL = """\
model:
  d_model: 8
  layers:
    - {repeat: 1, sequence: {type: attention, n_heads: 2}, state: {type: mlp, d_hidden: 8}}
tasks: [{type: capacity, n_entities: 8, n_values: 2, n_tokens: 8}]
train: {steps: 2, batch_size: 4, lr: 1e-3}
seed: 0
"""
SPACE = MODEL.replace("n_heads: 2", "n_heads: {choice: [1, 2]}") + (
    "search: {trials: 1, sampler: random, confirm_seeds: 0, "
    "objectives: {cache_bytes: minimize, capacity.bits: maximize}, constraints: {params: {max: 100000}}}\n"
)
EXPERIMENT = (
    "base:\n"
    + "".join(f"  {line}\n" for line in MODEL.replace("seed: 0\n", "").splitlines())
    + ("arms: {one: {}, two: {model.layers.0.sequence.n_heads: 1}}\nprotocol: {lr: [0.01], seeds: 1}\n")
)


class Case(NamedTuple):
    """A command that works in the folder of `prepare`, and the file whose bytes are broken: none, then a word is."""

    command: str
    file: str = ""


CASES = (
    Case("describe model.yaml --json", "model.yaml"),
    Case("describe model.json --json", "model.json"),
    Case("train model.yaml --out new --json --set train.steps=1", "model.yaml"),
    Case("describe model.yaml --json --set seed=1 --set model.layers.0.sequence.n_heads=1"),
    Case("train model.yaml --out new --json --threads 1 --set train.lr=1e-3"),
    Case("search space.yaml --trials 1 --workers 1 --seed 0 --out new --json", "space.yaml"),
    Case("search space.yaml --trials 1 --workers 1 --seed 0 --out new --json"),
    Case("search space.yaml --trials 2 --workers 1 --out search --resume --json", "search/study.db"),
    Case("search space.yaml --trials 1 --workers 1 --out search --resume --json", "space.yaml"),
    Case("report search --json", "search/study.db"),
    Case("report search --json", "search/front.json"),
    Case("report search --json"),
    Case("compare experiment.yaml --workers 1 --out new --json", "experiment.yaml"),
    Case("compare experiment.yaml --workers 1 --out experiment --json", "experiment/result.json"),
    Case("compare search --workers 1 --out new --json", "search/study.db"),
    Case("scale experiment.yaml --workers 1 --factors 1 2 --out new --json", "experiment.yaml"),
    Case("scale experiment.yaml --workers 1 --factors 1 2 --out new --json"),
    Case("rerun run/capacity --out new --json", "run/capacity/record.jsonl"),
    Case("rerun run/capacity --out new --json"),
    Case("train model.yaml --out run --json", "run/capacity/record.jsonl"),
    Case("train model.yaml --out run --json", "run/capacity/model.safetensors"),
    Case("train model.yaml --out half --json", "half/capacity/checkpoint.safetensors"),
    Case("check mlp --d-model 8 --json --set d_hidden=8"),
    Case("tasks capacity --json"),
    Case("blocks --kind state --json"),
    Case("schema --of run"),
)


def prepare(folder: Path) -> None:
    """What the cases read: files, a finished run, one that is half done, a search and a comparison."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(None):
        for name, text in {"model": MODEL, "space": SPACE, "experiment": EXPERIMENT}.items():
            Path(f"{name}.yaml").write_text(text)
        run = load(Path("model.yaml")).resolved()
        Path("model.json").write_text(run.model_dump_json())
        _must(main(["train", "model.yaml", "--out", "run", "--json"]))
        for command, source, out in (("search", "space", "search"), ("compare", "experiment", "experiment")):
            _must(main([command, f"{source}.yaml", "--workers", "1", "--out", out, "--json"]))
        shutil.copytree("run", "half")
        Path("half/capacity", WEIGHTS).unlink()
        record = Path("half/capacity/record.jsonl")
        record.write_text("".join(record.read_text().splitlines(keepends=True)[:-1]))
        model = CausalLM.build(run.model)
        save_checkpoint(Path("half/capacity", CHECKPOINT), model, build_optimizer(model, run.train), Progress(1))


def _must(code: int) -> None:
    if code:
        raise RuntimeError("a command fails that nothing has broken yet")


def child(words: list[str], folder: Path) -> None:
    """Run the command in this process, which ends with it."""
    os.setsid()
    os.chdir(folder)
    for stream, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30,) * 2)
    spent = int(time.process_time()) + 1  # a forked process begins with nothing, but rounding is upward
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS,) * 2)
    code = 99
    try:
        code = main(words)
    except SystemExit as ended:  # argparse
        code = ended.code if isinstance(ended.code, int) else 99
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def fault(words: list[str], folder: Path) -> str:
    """What is wrong with how the command ends; empty when nothing is."""
    pid = os.fork()
    if not pid:
        child(words, folder)
    began = time.monotonic()
    while not (done := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() - began < WALL_SECONDS:
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if not done[0]:
        os.waitpid(pid, 0)
        return f"waits for more than {WALL_SECONDS} s"
    code = os.waitstatus_to_exitcode(done[1])
    said = (folder / "err.txt").read_text(errors="replace") if (folder / "err.txt").exists() else ""
    if "Traceback" in said or "Exception ignored" in said:
        return "traceback: " + " | ".join(said.strip().splitlines()[-3:])
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return f"takes more than {CPU_SECONDS} s"
    if code not in CODES:
        return f"exit code {code}: {said[-200:]}"
    if code == 2 and (said.count("\n") != 1 or len(said) > 2000):
        return f"not one short line: {said[:500]!r}"
    return ""


def mutations(seed: int, count: int, whole: Path, folder: Path) -> Iterator[tuple[int, str, list[str], Path]]:
    """The numbered mutations: what was done, the words of the command, and the folder it runs in, made anew."""
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        case = CASES[number % len(CASES)]
        place = folder / str(number)
        shutil.copytree(whole, place)
        words = case.command.split()
        if case.file:
            file = place / case.file
            broken, said = broken_bytes(file.read_bytes(), draw, text=file.suffix in (".yaml", ".json", ".jsonl"))
            file.write_bytes(broken)
            said = f"{case.file}: {said}"
        else:
            words, said = broken_word(words, draw)
        yield number, said, words, place
        shutil.rmtree(place, ignore_errors=True)


def fuzz(count: int, seed: int, only: int | None = None) -> int:
    """Run the mutations; returns how many ended wrong."""
    import doge_lab.experiment.runner
    import doge_lab.search.coordinator

    doge_lab.experiment.runner.Pool = doge_lab.search.coordinator.Pool = InProcess  # no workers to wait for
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("DOGE_LAB_CACHE", f"{name}/cache")
        whole = Path(name, "whole")
        whole.mkdir()
        prepare(whole)
        for number, said, words, folder in mutations(seed, count, whole, Path(name)):
            if only in (None, number) and (found := fault(words, folder)):
                wrong += 1
                print(f"{number}: {' '.join(words)[:200]}\n    {said}\n    {found}", flush=True)
    print(f"{count} mutations, {wrong} faults")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run this mutation alone")
    asked = parser.parse_args()
    sys.exit(bool(fuzz(asked.mutations, asked.seed, asked.only)))
