"""Files that are whole or not there, and settings compared with earlier ones."""

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import socket
import threading

import pytest

from speechbrain_ssl import files
from speechbrain_ssl.files import (
    hash_of,
    occupy,
    read_json,
    refuse_changes,
    same_or_refuse,
    write_json,
    write_whole,
)


def test_folder_is_made_and_only_the_file_is_in_it(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with write_whole(path) as file:
        file.write("a\r\nb\udcff")
        assert not path.exists()
    assert path.read_bytes() == b"a\r\nb\\udcff"
    assert os.listdir(path.parent) == ["file.txt"]


def test_bytes_are_written_as_they_are(tmp_path):
    with write_whole(tmp_path / "array", "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "array").read_bytes() == b"\x00\xff"


def test_a_pipe_or_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no regular file"):
        with write_whole(tmp_path / "pipe"):
            pass
    with pytest.raises(OSError, match="stdout is no regular file"):
        with write_whole("/dev/stdout"):
            raise AssertionError  # so that nothing is replaced
    assert os.listdir(tmp_path) == ["pipe"]
    assert not (tmp_path / "pipe").is_file()


def test_failed_write_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), write_whole(path) as file:
        file.write("after")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_full_disk_keeps_the_earlier_file(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file.txt"
    path.write_text("before")
    monkeypatch.setattr(files.os, "fsync", refuse)
    with (
        pytest.raises(OSError, match=r"No space.*file\.txt"),
        write_whole(path) as file,
    ):
        file.write("after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_is_named_also_by_the_last_bytes(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="small.txt"):
            with write_whole(tmp_path / "small.txt") as file:
                file.write("less than a buffer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_data_are_on_the_disk_before_the_file_gets_its_name(
    tmp_path, monkeypatch
):
    path, seen = tmp_path / "file.txt", []
    monkeypatch.setattr(
        files.os,
        "fsync",
        lambda handle: seen.append((os.fstat(handle).st_size, path.exists())),
    )
    with write_whole(path) as file:
        file.write("abc")
    assert seen == [(3, False)]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / ".file.txt.part").write_text("a long text of a killed process")
    with write_whole(tmp_path / "file.txt") as file:
        file.write("short")
    assert (tmp_path / "file.txt").read_text() == "short"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path, entered = tmp_path / "file.txt", threading.Event()

    def write(letter, wait):
        with write_whole(path) as file:
            for _ in range(100):
                file.write(letter * 1000)
                file.flush()
                entered.set()
            wait.wait(0.1)

    never = threading.Event()
    first = threading.Thread(target=write, args=("a", never))
    first.start()
    entered.wait()
    second = threading.Thread(target=write, args=("b", never))
    second.start()
    first.join()
    second.join()
    assert path.read_text() in ("a" * 100_000, "b" * 100_000)
    assert os.listdir(tmp_path) == ["file.txt"]


def test_hash_is_sha256_of_files_and_bytes_in_order(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ab")
    expected = hashlib.sha256(b"abcd").hexdigest()
    assert hash_of(path, b"cd") == hash_of(b"abc", b"d") == expected
    assert hash_of(b"cd", path) != expected


@pytest.mark.parametrize("text", ["", '{"seed": ', "{} {}"])
def test_damaged_json_is_named(tmp_path, text):
    path = tmp_path / "meta.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json is damaged.*delete it"):
        read_json(path)


def test_json_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_equal_settings_are_accepted_and_not_written_again(tmp_path):
    path = tmp_path / "settings.json"
    settings = {"speeds": (0.9, 1.0), "loss": {"margin": 0.2}}
    assert same_or_refuse(path, settings) == read_json(path)
    written = path.stat().st_mtime_ns
    same_or_refuse(path, settings)
    assert path.stat().st_mtime_ns == written


def test_refusal_lists_each_key_with_both_values(tmp_path):
    path = tmp_path / "settings.json"
    same_or_refuse(path, {"seed": 1, "loss": {"margin": 0.2, "s": 30}, "a": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError) as refusal:
        same_or_refuse(
            path,
            {"seed": 2, "loss": {"margin": 0.3, "s": 30}, "b": 0, "c": None},
            what="The run",
            advice="Choose another one.",
        )
    assert str(refusal.value).splitlines() == [
        "The run was started with other settings:",
        "  seed: was 1, is 2",
        "  loss.margin: was 0.2, is 0.3",
        "  a: was 1, is absent",
        "  b: was absent, is 0",
        "Choose another one.",
    ]
    assert path.read_bytes() == before


def test_arguments_of_an_object_are_compared_one_by_one():
    def settings(temperature, name="SimCLR"):
        return {"objective": [f"!new:{name}", {"temperature": temperature}]}

    with pytest.raises(ValueError, match="objective.temperature: was 1, is 2"):
        refuse_changes(settings(1), settings(2))
    with pytest.raises(ValueError, match=r'objective: was \["!new:SimCLR", \{'):
        refuse_changes(settings(1), settings(1, "MoCo"))


def test_a_key_that_may_change_is_recorded_anew(tmp_path):
    path = tmp_path / "settings.json"
    write_json(path, {"seed": 1, "epochs": 5, "made": 3})
    record = same_or_refuse(path, {"seed": 1, "epochs": 9}, ("epochs", "made"))
    assert record == {"seed": 1, "epochs": 9, "made": 3} == read_json(path)


def test_many_differences_are_counted():
    with pytest.raises(ValueError, match="and 12 more"):
        refuse_changes({}, dict.fromkeys("abcdefghijklmnopqrst", 1))


def holder(folder, connection):
    """Occupies a folder until it is told to end."""
    with occupy(folder):
        connection.send(os.getpid())
        connection.recv()


@pytest.fixture
def other(tmp_path):
    """A process that occupies a folder, and the connection to it."""
    mine, its = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=holder, args=(tmp_path, its))
    process.start()
    mine.recv()
    yield process
    process.kill()
    process.join()


def test_second_process_is_refused_and_told_the_first(other, tmp_path):
    expected = f"process {other.pid} on host {socket.gethostname()} since"
    with pytest.raises(ValueError, match=expected), occupy(tmp_path):
        pass


def test_killed_process_leaves_no_lock(other, tmp_path):
    other.kill()
    other.join()
    with occupy(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".in_use").read_text()


def test_child_of_a_killed_process_does_not_keep_the_lock(tmp_path):
    child, its = multiprocessing.Pipe()
    if not (first := os.fork()):
        with occupy(tmp_path):
            if not os.fork():  # as a loader's worker
                child.recv()
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(first, 0)
    with occupy(tmp_path):
        its.send(None)


def test_file_system_without_locks_gives_a_warning(
    tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with occupy(tmp_path):
        assert "cannot be locked" in caplog.text
