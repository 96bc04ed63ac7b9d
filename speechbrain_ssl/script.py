"""How a script ends: with one line and a stated exit code.

========= ==================================================================
exit code
========= ==================================================================
0         everything is done
1         an error; one line says which. The traceback is in log.txt, and is
          printed where the fault is in code outside of this package
130, 143  SIGINT (Ctrl-C) or SIGTERM; a training has saved a checkpoint
========= ==================================================================
"""

import contextlib
import logging
import multiprocessing
import os
import pathlib
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator

import torch

from speechbrain_ssl import distributed, watch

logger = logging.getLogger(__name__)

EXPECTED = (ImportError, OSError, ValueError)
LIBRARIES = {"site-packages", "dist-packages"}
# Ends of the names of modules that the scripts of a recipe import.
BESIDE = ("_prepare", "_voices")
# torch's words for this are many, and those of a worker come with a traceback.
NO_SHARED_MEMORY = (
    "Loader workers hand over batches in /dev/shm, which is full. Enlarge it "
    "(docker run --shm-size 8g ...), or set num_workers to 0. The same command "
    "goes on from the last checkpoint."
)
# A launcher hands a signal on that the terminal has sent as well.
REPEAT_SECONDS = 3.0


# Loggers whose information tells a user nothing.
QUIET = (
    "speechbrain.utils.quirks",
    "speechbrain.utils.epoch_loop",
    "speechbrain.utils.parameter_transfer",
    "speechbrain.utils.seed",
    "matplotlib.font_manager",
)


class _Signals:
    """Signals that this process received while a training deferred them."""

    # forked loader workers inherit the handler, not the duty
    owner: int | None = None
    deferred = False
    received: int | None = None
    since = 0.0


class Interrupted(SystemExit):
    """A signal asks the process to end; ``text`` is what the user must know."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(128 + number)
        self.text = f"{signal.Signals(number).name}: {text or 'ended.'}"


def run_script(main: Callable, argv: list[str] | None = None) -> None:
    """Runs a script's main function and ends the process."""
    name = os.path.basename(sys.argv[0])
    for logger_name in QUIET:
        logging.getLogger(logger_name).addFilter(_is_warning)
    _Signals.owner = os.getpid()
    handlers = {
        number: signal.signal(number, _on_signal)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code, text = 0, None
        main(sys.argv[1:] if argv is None else argv)
        distributed.leave()
    except Interrupted as end:
        code, text = end.code, end.text
    except RuntimeError as error:
        # a signal to the whole group also ends the loader's workers
        if _is_of_group(error) and (text := watch.lost()):
            if watch.speaks():
                print(f"{name}: {text}", file=sys.stderr, flush=True)
            watch.end_now()
        # that of a GPU is another one
        is_loader = "DataLoader worker" in str(error)
        if is_loader and "shared memory" in str(error):
            logger.debug("Stopped", exc_info=True)
            code, text = 1, NO_SHARED_MEMORY
        elif _Signals.received is None or not is_loader:
            raise
        else:
            end = Interrupted(_Signals.received, "ended before a checkpoint.")
            code, text = end.code, end.text
    except EXPECTED as error:
        logger.debug("Stopped", exc_info=True)
        if comes_from_users_code(error):
            raise
        code, text = 1, str(error)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _end_workers()
    if code:
        _say(f"{name}: {text}")
        sys.exit(code)


def _is_of_group(error):
    """Whether an error is one of the communication between processes."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection", "peer")
    )


def _end_workers():
    """Ends loader workers that are still alive; they hold no state.

    Python sends each one SIGTERM when it exits, and then waits for ever: see
    ``outlive_signal``.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()


def _is_warning(record):
    """Filter of a logger: SpeechBrain resets the levels of its loggers."""
    return record.levelno >= logging.WARNING


def _say(text):
    """Prints a line, once for all processes."""
    if distributed.rank() == 0:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Lets a training finish its step and save before a signal ends it.

    Within the block a signal is noted, see ``stop_requested``; the same signal
    some seconds later ends the process at once. The block ends with
    ``Interrupted`` if a signal was noted and not obeyed.
    """
    _Signals.deferred, _Signals.received = True, None
    try:
        yield
    finally:
        _Signals.deferred = False
    if _Signals.received is not None:
        raise Interrupted(_Signals.received)


def outlive_signal(worker: int) -> None:
    """Lets a loader worker outlive a signal that its whole group receives.

    The training needs its workers until the step is done. A second SIGTERM ends
    a worker, as when the loader is closed. This is a ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM,
        lambda number, frame: signal.signal(number, signal.SIG_DFL),
    )


def stop_requested() -> int | None:
    """Number of the deferred signal that was received, or None."""
    return _Signals.received if _Signals.deferred else None


def _on_signal(number, frame):
    """Ends the process, or notes that a training has to."""
    if os.getpid() != _Signals.owner:
        return
    if not _Signals.deferred:
        raise Interrupted(number)
    if _Signals.received is None:
        _Signals.received, _Signals.since = number, time.monotonic()
        _say(
            f"{signal.Signals(number).name}: saving a checkpoint after this "
            "step. The same signal again ends at once."
        )
    elif time.monotonic() - _Signals.since > REPEAT_SECONDS:
        raise Interrupted(number, "ended before a checkpoint.")


def comes_from_users_code(error: BaseException) -> bool:
    """Whether code of neither this package nor a library raised an error.

    Causes are looked at, too. The author of a plugin needs the traceback.
    """
    script = pathlib.Path(sys.argv[0]).resolve()
    # a link to a script has the preparation of its recipe beside it
    folders = script.parent, pathlib.Path(sys.argv[0]).parent.resolve()
    known = [
        pathlib.Path(__file__).resolve().parent,
        pathlib.Path(sysconfig.get_paths()["stdlib"]).resolve(),
    ]

    def is_known(frame):
        file = frame.f_code.co_filename
        path = pathlib.Path(file).resolve()
        is_recipe = path.parent in folders and (
            path == script
            or path.stem.endswith(BESIDE)
            # another script, which this one runs by runpy
            or frame.f_globals.get("__name__") == "<run_path>"
        )
        return (
            file.startswith("<")
            or file.endswith(".pyx")  # compiled: of numpy, scikit-learn
            or is_recipe
            or bool(LIBRARIES & set(path.parts))
            or any(folder in path.parents for folder in known)
        )

    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if not is_known(frame):
                return True
        error = error.__cause__ or error.__context__
    return False
