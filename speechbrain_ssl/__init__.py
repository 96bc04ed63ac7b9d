"""Self-supervised speaker verification for SpeechBrain.

>>> import speechbrain_ssl
>>> encoder = speechbrain_ssl.load("results/moco/1/model")  # doctest: +SKIP
>>> speechbrain_ssl.verify("model", "a.wav", "b.wav").score  # doctest: +SKIP
0.71

``load`` an exported model, ``embed`` a folder of audio with it, ``verify`` two
recordings, ``score_pairs`` of a list, ``enrol`` and ``identify`` speakers,
``fuse`` the scores of several models, ``export`` a training run, and
``check_objective`` of your own. They are imported when they are first used, so
that the package itself imports no torch.
"""

import getpass
import importlib
import logging
import os

__version__ = "0.1.0"

# SpeechBrain's import warns that torchvision, which is not needed, is missing.
# It sets the level of its loggers itself, but leaves filters alone.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)

# A container may run as a number that no user has (docker run --user 1234).
# torch asks for the user's name when it makes an optimizer, and fails.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["LOGNAME"] = f"uid{os.getuid()}"

_PLACES = {
    "load": ("loading", "load_encoder"),
    "embed": ("cli.embed", "embed"),
    "verify": ("cli.score", "verify"),
    "score_pairs": ("cli.score", "score_pairs"),
    "enrol": ("cli.enrol", "enrol"),
    "identify": ("cli.identify", "identify"),
    "fuse": ("cli.fuse", "fuse"),
    "export": ("exporting", "export_run"),
    "check_objective": ("testing", "check_objective"),
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name):
    """Imports what the package offers when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _PLACES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


def __dir__():
    """Names for completion."""
    return sorted(__all__)
