"""A stage is done once, with what it was begun with, by one job at a time."""

import json
import subprocess
import sys
import threading
import time

import pytest

from speechbrain_ssl.stages import (
    only_job,
    run_command,
    run_stage,
)


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def lock(tmp_path):
    with only_job(tmp_path / "job") as lock:
        yield lock


def test_a_stage_is_marked_done_after_its_work(tmp_path):
    folder = tmp_path / "labels"

    def work():
        mark = json.loads((folder / "stage.json").read_text())
        assert mark["exit_code"] is None
        assert mark["inputs"] == {"seed": 1}
        assert mark["command"] == ["cluster"]

    assert run_stage(folder, {"seed": 1}, work, ["cluster"])
    mark = json.loads((folder / "stage.json").read_text())
    assert mark["exit_code"] == 0 and mark["attempts"] == 1
    assert mark["seconds"] >= 0
    assert not run_stage(folder, {"seed": 1}, lambda: 1 / 0)


def test_work_that_broke_off_is_done_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_stage(tmp_path, {"seed": 1}, lambda: 1 / 0)
    assert run_stage(tmp_path, {"seed": 1}, lambda: 0)
    mark = json.loads((tmp_path / "stage.json").read_text())
    assert mark["attempts"] == 2


@pytest.mark.parametrize(
    "inputs, said",
    [
        ({"seed": 2, "data": "x"}, "seed: was 1, is 2"),
        ({"seed": 1}, 'data: was "x", is absent'),
        ({"seed": 1, "data": "x", "new": []}, r"new: was absent, is \[\]"),
    ],
)
@pytest.mark.parametrize("is_done", [True, False])
def test_other_inputs_are_refused(tmp_path, inputs, said, is_done):
    before = {"seed": 1, "data": "x"}
    if is_done:
        run_stage(tmp_path, before, lambda: 0)
    else:
        with pytest.raises(ZeroDivisionError):
            run_stage(tmp_path, before, lambda: 1 / 0)
    with pytest.raises(ValueError, match=said) as error:
        run_stage(tmp_path, inputs, lambda: 0)
    assert "another output_folder" in str(error.value)


def test_tuples_and_lists_are_the_same_inputs(tmp_path):
    run_stage(tmp_path, {"sizes": (1, 2)}, lambda: 0)
    assert not run_stage(tmp_path, {"sizes": (1, 2)}, lambda: 0)


def test_many_differences_are_counted(tmp_path):
    run_stage(tmp_path, {str(n): "x" * 500 for n in range(20)}, lambda: 0)
    with pytest.raises(ValueError, match="and 12 more") as error:
        run_stage(tmp_path, {}, lambda: 0)
    assert max(map(len, str(error.value).splitlines()[1:10])) < 100


def test_output_goes_to_console_and_log(tmp_path, lock, capfd):
    code = "import sys; print('é'); print('oh', file=sys.stderr); sys.exit(4)"
    assert run_command(python(code), tmp_path, lock) == 4
    run_command(python("print('again')"), tmp_path, lock)
    out = capfd.readouterr().out
    assert "é" in out and "oh" in out
    log = (tmp_path / "stage.log").read_text(encoding="utf-8")
    assert log.index("é\n") < log.index("again")


def test_output_is_seen_while_the_command_runs(tmp_path, lock):
    go = tmp_path / "go"
    code = (
        "import os, time\nprint('waiting')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    )
    thread = threading.Thread(
        target=run_command, args=(python(code), tmp_path, lock)
    )
    thread.start()
    log = tmp_path / "stage.log"
    end = time.monotonic() + 60
    while not log.exists() or "\nwaiting" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    go.touch()
    thread.join()


def test_a_failure_shows_the_last_lines_and_no_progress(tmp_path, lock):
    code = (
        "import os; print('first'); print('1 %\\r50 %\\r99 %')\n"
        "for n in range(30): print('line', n)\n"
        "os.kill(os.getpid(), 9)"
    )
    with pytest.raises(ChildProcessError) as error:
        run_stage(
            tmp_path, {}, lambda: run_command(python(code), tmp_path, lock)
        )
    text = str(error.value)
    assert "SIGKILL" in text and "line 29" in text and "stage.log" in text
    assert "first" not in text and "50 %" not in text


def test_a_command_is_ended_with_its_job(tmp_path, lock, monkeypatch):
    began = time.monotonic()

    class Console:
        """Breaks at the first output."""

        def write(self, chunk):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", type("Out", (), {"buffer": Console()}))
    code = "import time; print('x'); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_command(python(code), tmp_path, lock)
    assert time.monotonic() - began < 50


def test_a_job_waits_for_a_command_that_outlived_another(tmp_path, capsys):
    code = (
        "import time; from speechbrain_ssl.stages import only_job\n"
        f"lock = only_job({str(tmp_path)!r}); file = lock.__enter__()\n"
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        '\'import time; time.sleep(2); open("over", "w")\'], '
        f"cwd={str(tmp_path)!r}, pass_fds=[file.fileno()])\n"
        "print('begun', flush=True); os.kill(os.getpid(), 9)"
    )
    job = subprocess.Popen(python(code), stdout=subprocess.PIPE)
    assert job.stdout.readline() == b"begun\n"
    job.wait()
    with only_job(tmp_path):
        assert (tmp_path / "over").exists()
    assert "Waiting" in capsys.readouterr().out
