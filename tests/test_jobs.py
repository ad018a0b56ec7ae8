"""Jobs are processes of their own: started, found again, stopped, killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.errors import MemsslError
from memssl_core.jobs import JobFolder, event_writer, find, read_events, start, working

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import subprocess, sys, time
from pathlib import Path
from memssl_core.errors import DataError
from memssl_core.jobs import working
how, folder = sys.argv[1], Path(sys.argv[3])
print(how, flush=True)
try:
    with working(folder, resource="cpu" if how == "queued" else None) as work:
        if how == "fail":
            raise DataError("There are no pictures here; choose another folder.")
        if how == "family":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
            work.emit("progress", step=0, words=str(child.pid))
        for step in range({"queued": 4, "quick": 3}.get(how, 600)):
            if work.should_stop():
                break
            work.emit("progress", step=step, total=600, words="counting")
            time.sleep(0.1)
        else:
            work.finish("all counted")
except DataError as reason:
    sys.exit(str(reason))
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """start(how) runs a small job below tmp_path/jobs."""
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    root = tmp_path / "jobs"
    yield lambda how: start([how], kind="count", title=how, module="worker", root=root, facts={"source": "a"})
    for job in find(root):
        job.request_stop()


def until(holds, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def state(job):
    return (job.status() or {}).get("state")


def test_a_job_tells_how_far_it_is_and_what_it_made(jobs, tmp_path):
    job = jobs("quick")
    assert state(job) in ("waiting", "running", "finished")
    until(lambda: state(job) == "finished")
    status = job.status()
    assert (status["kind"], status["title"], status["source"], status["result"]) == (
        "count",
        "quick",
        "a",
        "all counted",
    )
    events, offset = read_events(job.events)
    assert [event["step"] for event in events] == [0, 1, 2] and offset == job.events.stat().st_size
    assert read_events(job.events, offset) == ([], offset)
    assert find(tmp_path / "jobs") == [job]
    job.remove()
    assert find(tmp_path / "jobs") == []


def test_a_job_outlives_whoever_started_it(jobs, tmp_path):
    starter = (
        "import time\nfrom pathlib import Path\nfrom memssl_core.jobs import start\n"
        f"start(['quick'], kind='count', title='mine', module='worker', root=Path({str(tmp_path / 'jobs')!r}))\n"
        "print('started', flush=True)\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    server = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, env=environment)
    server.stdout.readline()
    server.kill()
    server.wait()
    (job,) = find(tmp_path / "jobs")
    until(lambda: state(job) == "finished")


def test_a_stopped_job_says_so(jobs):
    job = jobs("long")
    until(lambda: (job.status() or {}).get("words") == "counting")
    with pytest.raises(MemsslError, match="still running"):
        job.remove()
    job.request_stop()
    until(lambda: state(job) == "stopped")


def test_a_killed_job_is_lost(jobs):
    job = jobs("long")
    until(lambda: state(job) == "running")
    os.kill(job.status()["pid"], signal.SIGKILL)
    until(lambda: state(job) == "lost")


def test_killing_ends_a_live_job_and_all_that_it_started_and_nothing_else(jobs, tmp_path):
    job = jobs("family")
    begun = until(lambda: [event for event in read_events(job.events)[0] if event["words"] != "counting"])
    child = psutil.Process(int(begun[0]["words"]))
    assert job.kill() and state(job) == "lost"
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert not job.kill()
    ours = JobFolder(tmp_path / "ours").create()
    assert not ours.kill()
    ours.write_status("running")
    assert not ours.kill() and state(ours) == "running"
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process = psutil.Process(other.pid)
        told = {"state": "running", "pid": other.pid, "process_start_s": process.create_time() - 1, "heartbeat_s": 0.0}
        (ours.path / "status.json").write_text(json.dumps(told))  # its number is another's by now
        assert not ours.kill() and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_folder_is_used_again_with_its_log_and_keeps_its_last_status_until_there_is_another(jobs, tmp_path):
    folder = tmp_path / "used"
    asked = {"kind": "count", "module": "worker", "folder": folder}
    first = start(["quick", "--job", str(folder)], title="one", **asked)
    assert first.path == folder
    until(lambda: state(first) == "finished")
    printed = first.log_tail()
    again = start(["quick", "--job", str(folder)], title="two", facts={"started_s": 5.0}, **asked)
    assert again == first and first.status()["state"] in ("waiting", "running")
    until(lambda: state(first) == "finished")
    status = first.status()
    assert (status["title"], status["started_s"]) == ("two", 5.0)
    assert printed and first.log_tail() == 2 * printed
    assert sorted(path.name for path in folder.iterdir()) == [
        *("control", "events.jsonl", "job.json", "log.txt", "status.json")
    ]


def test_a_save_is_asked_for_once(tmp_path):
    job = JobFolder(tmp_path).create()
    assert not job.save_requested()
    job.request_save()
    job.request_save()
    assert job.save_requested() and not job.stop_requested()
    job.clear_save()
    job.clear_save()
    assert not job.save_requested()
    job.request_save()
    job.clear_requests()
    assert not job.save_requested()


def test_a_job_that_never_began_is_lost(tmp_path):
    job = start([], kind="count", title="nothing", module="no_such_module", root=tmp_path)
    until(lambda: state(job) == "lost")
    assert "no_such_module" in job.log_tail()


def test_a_failed_job_keeps_its_sentence(jobs):
    job = jobs("fail")
    until(lambda: state(job) == "failed")
    assert job.status()["message"] == "There are no pictures here; choose another folder."
    assert "Traceback" not in job.log_tail()


def test_jobs_of_one_resource_take_turns(jobs):
    both = [jobs("queued"), jobs("queued")]
    until(lambda: all(state(job) == "finished" for job in both))
    times = sorted([event["time_s"] for event in read_events(job.events)[0]] for job in both)
    assert times[0][-1] <= times[1][0]


def test_a_waiting_job_can_be_stopped(tmp_path):
    with working(tmp_path / "first", resource="cpu") as work:
        (tmp_path / "second").mkdir()
        second = JobFolder(tmp_path / "second").create()
        second.request_stop()
        with pytest.raises(MemsslError), working(second.path, resource="cpu"):
            raise AssertionError("it had no turn")
        work.finish("x")
    assert second.status()["state"] == "stopped"


def test_what_is_no_job_is_passed_over(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "job.json").write_text("{")
    (tmp_path / "broken" / "status.json").write_text("[1, 2]")
    (tmp_path / "deep").mkdir()
    for name in ("job.json", "status.json"):
        (tmp_path / "deep" / name).write_text("[" * 100_000)
    (tmp_path / "a file").write_text("")
    assert find(tmp_path) == [] and find(tmp_path / "nowhere") == []


def test_another_process_with_the_same_number_is_not_the_job(tmp_path):
    job = JobFolder(tmp_path).create()
    job.write_status("running")
    assert state(job) == "running"
    status = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps({**status, "process_start_s": psutil.boot_time()}))
    assert state(job) == "lost"


def test_on_a_full_disk_a_job_can_still_say_why_it_ends(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(code, "refused")

    job = JobFolder(tmp_path).create()
    job.write_status("running", words="a long story" * 20)
    monkeypatch.setattr("memssl_core.jobs.write_atomically", refuse)
    code = errno.ENOSPC
    job.write_status("failed", message="The disk is full.")
    assert (told := job.status()) and (told["state"], told["message"]) == ("failed", "The disk is full.")
    with pytest.raises(OSError, match="refused"):
        JobFolder(tmp_path / "new").write_status("running")
    code = errno.EROFS
    with pytest.raises(OSError, match="refused"):
        job.write_status("stopped")


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    emit = event_writer(tmp_path / "events.jsonl")
    emit("progress", step=1)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write(f"5\n[]\n{'[' * 100_000}\n")
        file.write('{"event": "prog')
    emit("progress", step=2)
    emit("progress", step=3)
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")[0]] == [1, 3]


@given(words=st.lists(st.text(max_size=8), max_size=6), cuts=st.lists(st.integers(0, 600), max_size=6))
def test_events_are_read_whole_wherever_the_file_ends(tmp_path_factory, words, cuts):
    folder = tmp_path_factory.mktemp("events")
    emit = event_writer(folder / "whole.jsonl")
    for step, word in enumerate(words):
        emit("progress", step=step, words=word)
    content = (folder / "whole.jsonl").read_bytes() if words else b""
    seen, offset = [], 0
    for end in [*sorted(cuts), len(content)]:
        (folder / "events.jsonl").write_bytes(content[:end])
        events, offset = read_events(folder / "events.jsonl", offset)
        seen += [event["words"] for event in events]
    assert seen == words
