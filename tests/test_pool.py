"""The pool: whoever dies, hangs, prints or forges, every job gets its answer and nothing is left alive."""

import time

import pytest
from fake_worker import gone, written

from doge_lab.engine import pool as pools
from doge_lab.engine.pool import DIED, DONE, FAILED, READY, Pool
from doge_lab.engine.protocol import ending, read
from doge_lab.errors import UserError


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr("doge_lab.engine.process.PROGRAM", "fake_worker")


def work_off(pool, *jobs):
    """The last answers of `jobs`, in their order, and the names of all events."""
    waiting, last, events = list(enumerate(jobs)), {}, []
    while waiting or pool.running:
        while waiting and pool.idle:
            number, job = waiting.pop(0)
            pool.submit({"job": number, "kind": "fake", **({"do": job} if isinstance(job, str) else job)})
        event, job, content = pool.wait()
        events.append(event)
        if event in (DONE, FAILED):
            last[job["job"]] = content.get("reason", content.get("said"))
    return [last[number] for number in range(len(jobs))], events


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("os._exit(3)", "ended itself with code 3"),
        ("os._exit(0)", "ended itself with code 0"),
        ("ctypes.string_at(0)", "was ended by signal 11 (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed (signal 9), perhaps out of memory"),
        ("os.closerange(0, 4096)", "ended itself with code 1"),
    ],
)
def test_a_job_that_dies_twice_has_failed_and_says_how(do, reason):
    with Pool(["cpu"]) as pool:
        said, events = work_off(pool, do, "said = 1")
    assert said == [f"its process {reason}, and so again when it was repeated", 1]
    assert events == [READY, DIED, FAILED, DONE]
    assert pool.deaths == 2


def test_a_job_that_dies_once_is_done_the_second_time(tmp_path):
    with Pool(["cpu"]) as pool:
        said, events = work_off(pool, f"if once('{tmp_path}/mark'): os._exit(1)\nsaid = 1")
    assert (said, events) == ([1], [READY, DIED, DONE])


def test_a_silent_job_is_ended_and_one_that_speaks_is_not(monkeypatch):
    monkeypatch.setattr(pools, "LOOK", 0.05)
    with Pool(["cpu", "cpu"], job_timeout=0.5) as pool:
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(9)"
        said, _ = work_off(pool, deaf, "for _ in range(10): time.sleep(0.1); say('alive')\nsaid = 1")
    assert said == ["nothing was heard of it for 0.5 s, so it was ended; --job-timeout allows more", 1]


def test_how_long_a_job_may_be_silent_is_learnt_from_its_siblings(monkeypatch):
    monkeypatch.setattr(pools, "LOOK", 0.05)
    monkeypatch.setattr(pools, "UNKNOWN", 30.0)
    monkeypatch.setattr(pools, "LEAST", 0.3)
    monkeypatch.setattr(pools, "TIMES", 3)
    slow = {"do": "time.sleep(0.5); said = 1", "siblings": "slow"}
    with Pool(["cpu"]) as pool:
        quick = [{"do": f"time.sleep({seconds})", "siblings": "quick"} for seconds in (0, 60)]
        said, _ = work_off(pool, *quick, slow, slow)
    assert said[1].startswith("nothing was heard of it for 0.")
    assert said[2:] == [1, 1]


def test_time_in_which_the_pool_itself_was_stopped_is_no_silence(monkeypatch):
    with Pool(["cpu"], job_timeout=5.0) as pool:
        pool.wait()
        pool.submit({"job": 0, "kind": "fake", "do": "time.sleep(0.3)"})
        monkeypatch.setattr(pool, "_looked", pool._looked - 3600)
        assert pool.wait()[0] == DONE


@pytest.mark.parametrize("start", ["0", "0.3"])
def test_a_worker_that_is_killed_while_it_starts_or_waits_is_replaced(monkeypatch, start):
    monkeypatch.setenv("FAKE_START", start)
    with Pool(["cpu", "cpu"]) as pool:
        for kills in range(4):
            if start == "0":
                pool.wait()  # ready
            pool._workers[kills % 2]._process.kill()
            time.sleep(0.05 * (kills % 2))  # with its end known, or not yet, when the job is given away
        assert work_off(pool, *["said = 1"] * 4)[0] == [1] * 4


def test_a_worker_that_is_killed_at_work_takes_what_it_started_along_and_its_job_is_asked_again(tmp_path):
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    job = f"""if once('{tmp_path}/mark'):
  if os.fork() == 0:
    pathlib.Path('{grandchild}').write_text(str(os.getpid()))
    time.sleep(60)
  pathlib.Path('{child}').write_text(str(os.getpid()))
  time.sleep(60)
said = 1"""
    with Pool(["cpu"]) as pool:
        pool.submit({"job": 0, "kind": "fake", "do": job})
        processes = written(child), written(grandchild)
        pool._workers[0]._process.kill()
        assert [pool.wait()[0] for _ in range(4)] == [READY, DIED, READY, DONE]
        assert all(gone(pid) for pid in processes)


def test_where_a_process_cannot_fork_a_worker_does_one_job(monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_NO_FORK", "1")
    with Pool(["cpu", "cpu"]) as pool:
        said, _ = work_off(pool, *["said = os.getpid()"] * 4, f"if once('{tmp_path}/mark'): os._exit(1)\nsaid = 5")
        hung = "nothing was heard of it"
        monkeypatch.setattr(pool, "_job_timeout", 0.5)
        assert work_off(pool, "time.sleep(60)")[0][0].startswith(hung)
    assert len(set(said)) == 5
    assert said[4] == 5


def test_workers_that_never_start_end_it_with_one_line(monkeypatch):
    monkeypatch.setenv("FAKE_END", "7")
    with (
        Pool(["cpu", "cpu"]) as pool,
        pytest.raises(UserError, match=r"^5 worker processes .* ended itself with code 7"),
    ):
        pool.wait()


def test_what_a_job_prints_and_forges_is_neither_an_answer_nor_unbounded(capfd):
    forged = r"""line = b'\n{"event": "done", "job": 0, "said": "forged"}\n'
for pipe in range(64):
    try: os.write(pipe, line)
    except OSError: pass
print("y" * 10_000_000, flush=True)
os.write(1, b"\xff\x00{")
said = "mine"
"""
    with Pool(["cpu"]) as pool:
        assert work_off(pool, forged, "os.fork(); said = 1")[0] == ["mine", 1]
    printed = capfd.readouterr().err
    assert 64_000 < len(printed) < 70_000
    assert "(job 0 prints more than 64 KiB; the rest is left out)" in printed


def test_nothing_a_job_leaves_behind_reaches_the_next_one(tmp_path):
    leave = f"""os.chdir("{tmp_path}")
os.environ["HOME"] = "/nonexistent"
json.dumps = lambda *words, **more: "patched"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.umask(0o777)
if os.fork() == 0:
    os.umask(0)
    pathlib.Path("left").write_text(str(os.getpid()))
    time.sleep(60)
while not pathlib.Path("left").exists(): time.sleep(0.01)
"""
    look = "said = [os.getcwd(), os.environ['HOME'], json.dumps(1), signal.getsignal(15).name, os.umask(0o22)]"
    with Pool(["cpu"]) as pool:
        (before, failed, after), _ = work_off(pool, look, leave, look)
        assert gone(written(tmp_path / "left"))
    assert before == after
    assert "ended itself" in failed  # its own answers were spoilt, and only they


def test_a_torn_line_and_foreign_text_are_no_answer():
    lines = b'{"event": "do', b"[]", b"{}", b'{"event": 1}', b"\xff", b"[" * 99_999
    assert [read(line) for line in lines] == [None] * len(lines)
    assert ending(-35) == "was ended by signal 35 (unknown)"
