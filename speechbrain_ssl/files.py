"""Files that are written whole or not at all, and settings that must not change.

Everything that writes a result or a record uses ``write_whole``; everything
that continues earlier work compares its settings with ``same_or_refuse``.
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import IO, Any

logger = logging.getLogger(__name__)

SHOWN_DIFFERENCES, SHOWN_CHARACTERS = 8, 70
ABSENT = object()


@contextlib.contextmanager
def write_whole(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a file for writing that appears only when it is complete.

    The data go to ``.NAME.part`` in the same folder, which is made, are flushed
    to the disk, and get their name in one step. If writing fails, the earlier
    file stays. A ``.part`` file that a killed process left is replaced by the
    next write.

    ``mode`` is ``w`` for text in UTF-8 or ``wb``. Undecodable bytes of file
    names become ``\\udc..`` escapes, and line ends are written as they are
    given.

    Example
    -------
    >>> path = getfixture("tmp_path") / "new" / "figures.json"
    >>> with write_whole(path) as file:
    ...     _ = file.write("{}")
    >>> path.read_text()
    '{}'
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}.")
    folder, name = os.path.split(os.path.abspath(path))
    is_other = os.path.exists(path) and not os.path.isfile(path)
    # root would replace /dev/null by a file, and the link /dev/stdout
    if is_other or folder == "/dev":
        raise OSError(f"{path} is no regular file. Name another one.")
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.part")
    text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    options: dict[str, Any] = {} if mode == "wb" else text
    try:
        with open(_open_locked(temporary), mode, **options) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
                raise
    except OSError as error:
        # a full disk names no file, once more when the file is closed
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _open_locked(path):
    """Opens an empty file that no other process writes at the same time."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        # the writer before us may have renamed or removed this file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                os.ftruncate(handle, 0)
                return handle
        os.close(handle)


def hash_of(*parts: str | os.PathLike | bytes | IO) -> str:
    """SHA-256 of files (by path, or open) or bytes, one after the other.

    Example
    -------
    >>> hash_of(b"speech")[:8]
    '05fb617a'
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            digest.update(part)
            continue
        with _from_start(part) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _from_start(part):
    """A file at its first byte; one that is open stays open."""
    if hasattr(part, "seek"):
        part.seek(0)
        return contextlib.nullcontext(part)
    return open(part, "rb")


@contextlib.contextmanager
def occupy(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes out of a folder until the block ends.

    The lock is one of the operating system (POSIX ``fcntl``): it goes with the
    process, however that ends, and child processes do not inherit it. Hosts
    that share a disk see each other's locks if its file system has them (NFS
    with a lock service does); else a warning says that there is no lock. The
    folder is made; ``.in_use`` in it names the process.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, ".in_use")
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning(
                    "%s cannot be locked (%s): make sure that no other "
                    "process works in it.",
                    folder,
                    error,
                )
            else:
                file.seek(0)
                raise ValueError(
                    f"{os.path.abspath(folder)} is in use by "
                    f"{file.read() or 'another process'}. Wait until it ends, "
                    "or name another output_folder."
                ) from error
        _replace_text(
            file,
            f"process {os.getpid()} on host {socket.gethostname()} "
            f"since {time.strftime('%Y-%m-%d %H:%M:%S')}",
        )
        yield
        _replace_text(file, "")


def _replace_text(file, text):
    """Replaces the content of an open file; a full disk leaves it empty."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())


def read_text(path: str | os.PathLike, what: str = "text") -> str:
    """Reads UTF-8 text, without a byte order mark; ``what`` it should be."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no {what}: expected UTF-8 text, found {error}"
        ) from error


def read_json(
    path: str | os.PathLike,
    advice: str = "Restore it from a copy, or delete it and run the command "
    "that wrote it again.",
) -> Any:
    """Reads a JSON file; an empty, cut off or damaged one is named.

    ``advice`` is the last sentence of the error.
    """
    with open(path, encoding="utf-8-sig") as file:
        try:
            return json.load(file)
        except ValueError as error:
            size = os.path.getsize(path)
            raise ValueError(
                f"{path} is damaged: expected JSON, found {size} bytes that "
                f"are not ({error}). {advice}"
            ) from error


def read_jsonl(path: str | os.PathLike) -> list:
    """Reads a log with one JSON value on each line.

    A line that is not JSON, such as the end of a log whose writer was killed,
    is left out, with a warning that names it. A missing log has no lines.
    """
    values = []
    if not os.path.exists(path):
        return values
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                values.append(json.loads(line))
            except ValueError:
                logger.warning(
                    "%s, line %d is damaged and left out: %.40r",
                    path,
                    number,
                    line,
                )
    return values


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file, whole or not at all; its folder is made."""
    with write_whole(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)


def write_csv(
    path: str | os.PathLike, header: Iterable, rows: Iterable[Iterable]
) -> None:
    """Writes a CSV file, whole or not at all; its folder is made."""
    with write_whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def same_or_refuse(
    path: str | os.PathLike,
    settings: Mapping,
    may_change: Collection[str] = (),
    what: str | None = None,
    advice: str = "Use the same settings, or name another folder.",
) -> dict:
    """Records settings, or compares them with those recorded before.

    The JSON file ``path`` is written if it is missing. Settings that differ,
    but for the keys ``may_change``, are an error that lists each with both
    values: ``what`` was started with these settings (the file's folder by
    default), ``advice`` is the last sentence. Gives the record: earlier keys
    and those of now.

    Example
    -------
    >>> path = getfixture("tmp_path") / "settings.json"
    >>> _ = same_or_refuse(path, {"seed": 1, "epochs": 5})
    >>> same_or_refuse(path, {"seed": 1, "epochs": 9}, may_change=["epochs"])
    {'seed': 1, 'epochs': 9}
    """
    settings = json.loads(json.dumps(settings))
    before = read_json(path) if os.path.exists(path) else None
    record = settings
    if before is not None:
        what = what or os.path.dirname(os.path.abspath(path))
        refuse_changes(before, settings, may_change, what, advice)
        record = {**before, **settings}
    if record != before:
        write_json(path, record)
    return record


def refuse_changes(
    before: Mapping,
    now: Mapping,
    may_change: Collection[str] = (),
    what: str = "This work",
    advice: str = "Use the same settings, or name another folder.",
) -> None:
    """Refuses settings that differ from earlier ones; null equals absent.

    Settings may be nested; ``may_change`` are keys at the top. The message says
    ``what`` was started with the earlier settings, lists each key with both
    values, and ends with ``advice``.
    """
    lines = differences(before, now, may_change)
    if not lines:
        return
    if len(lines) > SHOWN_DIFFERENCES:
        more = len(lines) - SHOWN_DIFFERENCES
        lines = [*lines[:SHOWN_DIFFERENCES], f"  and {more} more"]
    raise ValueError(
        "\n".join([f"{what} was started with other settings:", *lines, advice])
    )


def differences(
    before: Mapping, now: Mapping, may_change: Collection[str] = ()
) -> list[str]:
    """Lists settings that differ, such as ``"  seed: was 1, is 2"``.

    Settings may be nested; ``may_change`` are keys at the top to leave out.
    """
    return [
        line
        for key in dict.fromkeys([*before, *now])
        if key not in may_change
        for line in _differences(
            key, before.get(key, ABSENT), now.get(key, ABSENT)
        )
    ]


def _differences(key, before, now):
    """One line for each value that differs, at any depth."""
    if _is_object(before) and _is_object(now) and before[0] == now[0]:
        before, now = before[1], now[1]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for inner in dict.fromkeys([*before, *now]):
            yield from _differences(
                f"{key}.{inner}",
                before.get(inner, ABSENT),
                now.get(inner, ABSENT),
            )
    elif before != now and not (_is_null(before) and _is_null(now)):
        yield f"  {key}: was {_short(before)}, is {_short(now)}"


def _is_object(value):
    """Whether a value is [tag, arguments] of an object in a YAML file."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and value[0].startswith("!")
    )


def _is_null(value):
    return value is None or value is ABSENT


def _short(value):
    """JSON of a value, cut to a length that fits on a line."""
    if value is ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS - 3]}..."
