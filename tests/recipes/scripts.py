"""Runs scripts of the recipes in the process of the test."""

import contextlib
import inspect
import logging
import os
import pathlib
import runpy
import signal
import sys

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"


def run_script(path, *arguments):
    """What ``python path arguments`` does, without a new process.

    Importing torch and SpeechBrain takes several seconds in each process, most
    of the time of a run on tiny data. Afterwards modules of the recipe are
    forgotten, as another recipe has modules of the same names, and logging is
    as it was.

    Arguments
    ---------
    path : str
        The script.
    *arguments : str
        Its arguments.
    """
    before = sys.argv, list(sys.path), sys.excepthook
    signals = (signal.SIGTERM, signal.SIGINT)
    handled = {number: signal.getsignal(number) for number in signals}
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [str(path), *map(str, arguments)]
    # as python does it, of a link the folder of its target
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{path} ended with {end.code}") from end
    finally:
        sys.argv, sys.path[:], sys.excepthook = before
        for number, handler in handled.items():
            signal.signal(number, handler)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level
        for name, module in list(sys.modules.items()):
            # getattr would load the modules that SpeechBrain loads lazily
            file = vars(module).get("__file__")
            if name == "__main__":  # of a script that runs this one
                continue
            if file and pathlib.Path(file).is_relative_to(RECIPES):
                del sys.modules[name]
        # which module a file is: SpeechBrain asks for that of the caller
        inspect._filesbymodname.pop("__main__", None)
        for file, name in list(inspect.modulesbyfile.items()):
            if name == "__main__":
                del inspect.modulesbyfile[file]


def run_stage_here(command, folder, lock):
    """In place of ``stages.run_command``: the script, without a new process.

    test_run_rounds.py tests the processes, and the slow test of SpeechBrain's
    runner has them too.
    """
    _, script, *arguments = command
    path = os.path.join(folder, "stage.log")
    with open(path, "a") as log, contextlib.redirect_stdout(log):
        run_script(script, *arguments)
    return 0
