"""Stages of a long job, each done once, whatever kills the job in between.

A stage has a folder. ``stage.json`` in it is written when the stage begins,
with all that decides what comes out, and again when it is done. Who runs the
job again skips what is done, repeats what is not, and is told if a stage was
begun with something else than it would be now.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from speechbrain_ssl.dataio.parallel import processors
from speechbrain_ssl.files import read_json, refuse_changes, write_json

MARK, LOG, LOCK = "stage.json", "stage.log", ".lock"
TAIL_LINES, TAIL_BYTES = 15, 20000


@contextlib.contextmanager
def only_job(folder: str) -> Iterator[IO]:
    """Waits until nothing works in a folder any more.

    Commands started by ``run_command`` hold the lock as well: one that has
    outlived a job that was killed is waited for. Gives the lock, for
    ``run_command``.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOCK), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"Something still works in {folder}: the same job, or a stage "
                "that outlived it. Waiting until it ends.",
                flush=True,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def run_stage(
    folder: str, inputs: dict, work: Callable, command: Sequence[str] = ()
) -> bool:
    """Does the work of a stage, unless it is done; says whether it did.

    ``inputs`` are all that decides what comes out, as JSON: settings, and
    hashes of files; a stage begun with others is an error. ``work`` returns an
    exit code, or None for 0; it may find what an earlier attempt left behind.
    ``command`` is what is run, for the readers of stage.json.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "labels"
    >>> run_stage(folder, {"seed": 1}, lambda: print("working"))
    working
    True
    >>> run_stage(folder, {"seed": 1}, lambda: print("working"))
    False
    """
    path = os.path.join(folder, MARK)
    inputs = json.loads(json.dumps(inputs))
    mark: dict[str, Any] = {"attempts": 0, "seconds": 0.0}
    if os.path.exists(path):
        again = (
            f"To do this stage again, delete {folder} and the folders of the "
            "stages that use its results."
        )
        mark = read_json(path, advice=again)
        refuse_changes(
            mark["inputs"],
            inputs,
            what=f"The stage {folder}",
            advice=f"Use the same settings and inputs, or name another "
            f"output_folder. {again}",
        )
        if mark["exit_code"] == 0:
            return False
    mark["attempts"] += 1
    mark.update(command=list(command), inputs=inputs, exit_code=None)
    write_json(path, mark)
    began = time.monotonic()
    mark["exit_code"] = work() or 0
    mark["seconds"] += time.monotonic() - began
    write_json(path, mark)
    if mark["exit_code"]:
        raise ChildProcessError(_failure(folder, mark["exit_code"]))
    return True


def torchrun(processes: int) -> list[str]:
    """The first words of a command that runs a script in several processes.

    On this machine; each process has its share of the cores, unless
    OMP_NUM_THREADS says how many.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # the name of the machine may have no address: torchrun would wait for it
    command += ["--local_addr=localhost", f"--nproc_per_node={processes}"]
    if "OMP_NUM_THREADS" in os.environ:
        return command
    share = max(1, processors() // processes)
    return ["env", f"OMP_NUM_THREADS={share}", *command]


def run_command(command: list[str], folder: str, lock: IO) -> int:
    """Runs a command; its output goes to the console and to ``stage.log``.

    ``lock`` is from ``only_job``. The exit code is -9 if signal 9 ended it.
    """
    process: Any = None
    with open(os.path.join(folder, LOG), "ab") as log:
        log.write(f"> {shlex.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                # whoever waits for the lock waits for the command, too
                pass_fds=[lock.fileno()],
            )
            while chunk := process.stdout.read1():
                for file in (log, sys.stdout.buffer):
                    file.write(chunk)
                    file.flush()
            return process.wait()
        finally:
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait()


def _failure(folder, code):
    """What went wrong, with the last lines of the log."""
    ended = f"exit code {code}"
    if code < 0:
        ended = f"{ended} ({signal.Signals(-code).name})"
    path = os.path.join(folder, LOG)
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    # of a progress bar only its last state
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    lines = [line for line in lines if line.strip()][-TAIL_LINES:]
    return (
        f"The stage {folder} ended with {ended}. Its output is in {path}; the "
        "last lines:\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\nThe same command goes on from here."
    )
