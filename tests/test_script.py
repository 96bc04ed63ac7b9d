"""A script ends with one line, an exit code, and a traceback for plugins."""

import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time

import pytest
from speechbrain.utils.logger import get_logger

from speechbrain_ssl import script
from speechbrain_ssl.checks import check, number
from speechbrain_ssl.script import defer_signals, run_script


@pytest.fixture(autouse=True)
def called(monkeypatch):
    """The name of a script."""
    monkeypatch.setattr("sys.argv", ["folder/train.py", "a.yaml"])


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module of a user that raises an error."""
    path = tmp_path / "my_loss.py"
    path.write_text("def loss(x):\n    raise ValueError('of my own')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_loss"
    sys.modules.pop("my_loss", None)


def test_error_of_a_setting_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(script, "comes_from_users_code", lambda error: False)

    def main(argv):
        assert argv == ["a.yaml"]
        check("momentum", 2, number(0, 1))

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 1
    said = "train.py: momentum must be a number from 0 to 1, not 2\n"
    assert capsys.readouterr().err == said


def test_library_and_package_are_not_users_code(monkeypatch):
    def frames_of(function, *arguments):
        try:
            function(*arguments)
        except Exception as error:
            # without the frame of this file
            return error.with_traceback(error.__traceback__.tb_next)

    import numpy as np
    import torch

    for error in (
        frames_of(check, "momentum", 2, number(0, 1)),
        frames_of(torch.nn.Linear, "four", 2),
        frames_of(os.listdir, "/no/such/folder"),
        frames_of(np.random.seed, 1.5),
    ):
        assert not script.comes_from_users_code(error)


def test_scripts_of_a_recipe_are_not_users_code(tmp_path, monkeypatch):
    recipe, other = tmp_path / "recipe", tmp_path / "other"
    for folder in (recipe, other):
        folder.mkdir()
    (recipe / "demo.py").touch()
    (other / "demo.py").symlink_to(recipe / "demo.py")
    for path, name, said in (
        (recipe / "train_ssl.py", "<run_path>", False),
        (other / "corpus_prepare.py", "corpus_prepare", False),
        (recipe / "my_loss.py", "my_loss", True),
        (tmp_path / "train_own.py", "<run_path>", True),
    ):
        path.write_text("def main():\n    raise ValueError\n")
        monkeypatch.setattr("sys.argv", [str(other / "demo.py")])
        try:
            runpy.run_path(str(path), run_name=name)["main"]()
        except ValueError as error:
            error = error.with_traceback(error.__traceback__.tb_next)
            assert script.comes_from_users_code(error) == said


def test_fault_of_a_plugin_keeps_its_traceback(plugin):
    def main(argv):
        try:
            __import__(plugin).loss(1)
        except ValueError as error:
            raise ValueError("the key 'objective'") from error

    with pytest.raises(ValueError, match="objective") as fault:
        run_script(main)
    frames = fault.value.__cause__.__traceback__
    while frames.tb_next:
        frames = frames.tb_next
    assert frames.tb_frame.f_code.co_filename.endswith("my_loss.py")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_script_at_once_with_its_exit_code(number, capsys):
    with pytest.raises(SystemExit) as end:
        run_script(lambda argv: os.kill(os.getpid(), number))
    assert end.value.code == 128 + number
    said = f"train.py: {signal.Signals(number).name}: ended.\n"
    assert capsys.readouterr().err == said


def test_signal_in_a_training_is_noted_and_obeyed_at_its_end(capsys):
    seen = []

    def main(argv):
        with defer_signals():
            assert script.stop_requested() is None
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher's copy of it
            seen.append(script.stop_requested())
        seen.append("after")

    with pytest.raises(SystemExit):
        run_script(main)
    assert seen == [signal.SIGTERM]
    assert script.stop_requested() is None
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_same_signal_some_seconds_later_ends_at_once(monkeypatch):
    monkeypatch.setattr(script, "REPEAT_SECONDS", -1.0)

    def main(argv):
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("still here")

    with pytest.raises(SystemExit, match="130"):
        run_script(main)


def test_workers_that_the_signal_killed_are_no_error(capsys):
    def main(argv):
        with defer_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 3) is killed")

    with pytest.raises(SystemExit, match="143"):
        run_script(main)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "train.py: SIGTERM: ended before a checkpoint."


@pytest.mark.parametrize(
    "words",
    [
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback: unable "
        "to allocate shared memory(shm) for file </torch_1>",
        "DataLoader worker (pid 3) is killed by signal: Bus error. It is "
        "possible that dataloader's workers are out of shared memory.",
    ],
)
def test_workers_without_shared_memory_end_in_one_line(words, capsys):
    def main(argv):
        raise RuntimeError(words)

    with pytest.raises(SystemExit, match="1"):
        run_script(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert "--shm-size" in line and "num_workers" in line


def test_shared_memory_of_a_gpu_is_another_error():
    def main(argv):
        raise RuntimeError("out of resource: shared memory, Required: 147456")

    with pytest.raises(RuntimeError, match="Required"):
        run_script(main)


def test_handlers_of_signals_come_back():
    before = signal.getsignal(signal.SIGTERM)
    run_script(lambda argv: None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_worker_outlives_one_signal_of_its_group_but_not_two():
    ready = os.pipe()
    if not (worker := os.fork()):
        script.outlive_signal(0)
        os.write(ready[1], b"x")
        while True:
            time.sleep(0.01)
            os.write(ready[1], b"x")
    os.read(ready[0], 1)
    for each in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, each)
        time.sleep(0.1)
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0)[1] == signal.SIGTERM


def _work_on(ready):
    script.outlive_signal(0)
    ready.set()
    time.sleep(600)


@pytest.mark.parametrize("error", [None, ValueError("wrong")])
def test_a_script_ends_its_workers(error, monkeypatch):
    # at exit, Python sends them one SIGTERM, which they outlive, and waits
    monkeypatch.setattr(script, "comes_from_users_code", lambda error: False)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_work_on, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)

    def main(argv):
        if error is not None:
            raise error

    try:
        run_script(main, [])
    except SystemExit as end:
        assert error is not None and end.code == 1
    assert not worker.is_alive()


def test_import_of_speechbrain_does_not_warn_of_torchvision(caplog):
    logger = get_logger("speechbrain.utils.train_logger")  # sets its level
    logger.warning("torchvision is not available")
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def test_epochs_of_speechbrain_are_not_announced(caplog):
    run_script(lambda argv: None)
    caplog.set_level(logging.INFO)
    logger = get_logger("speechbrain.utils.epoch_loop")
    logger.info("Going into epoch 1")
    logger.warning("of the epoch")
    assert caplog.messages == ["of the epoch"]
