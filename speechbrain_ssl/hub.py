"""Models of the Hugging Face hub, as local folders.

A model may be named ``user/name``, or ``user/name@revision`` with a branch, a
tag or a commit, wherever a model folder is expected. Only files of encoders
are downloaded, never code. Cache, token and address are those of
huggingface_hub, with its environment variables: ``HF_HOME``, ``HF_TOKEN``,
``HF_ENDPOINT``; ``HF_HUB_OFFLINE=1`` uses the cache only.
"""

import os
import re
from typing import Any, NamedTuple

from huggingface_hub import constants, snapshot_download

NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?"
)
SMALL = (
    "hyperparams.yaml",
    "config.json",
    "preprocessor_config.json",
    "threshold.json",
    "README.md",
)
# files that no command here reads
UNUSED = ("classifier.ckpt", "optimizer*", "label_encoder*")


class Snapshot(NamedTuple):
    """A model that is on this machine."""

    folder: str  # its folder
    # ``user/name`` on the hub; None if it was a local path
    name: str | None = None
    # hash of the commit on the hub; None if it was a local path
    commit: str | None = None


def is_name(source: str) -> bool:
    """Whether a source is meant for the hub.

    True for ``user/name`` unless there is such a path, or it ends with
    ``.onnx``.

    Example
    -------
    >>> is_name("speechbrain/spkrec-ecapa-voxceleb@main"), is_name("/a/b")
    (True, False)
    """
    source = os.fspath(source)
    if os.path.exists(source) or source.endswith(".onnx"):
        return False
    return bool(NAME.fullmatch(source))


def fetch(
    source: str | os.PathLike,
    revision: str | None = None,
    offline: bool = False,
) -> Snapshot:
    """Downloads a model of the hub, unless it is in the cache.

    A path is returned as it is. ``revision`` is a branch, tag or commit; None:
    that in ``source``, or main. ``offline`` uses the cache only.
    """
    source = os.fspath(source)
    if not is_name(source):
        if revision is not None:
            raise ValueError(
                f"revision is {revision}, but {source} is no name on the "
                "Hugging Face hub, such as user/name. Set revision to null."
            )
        return Snapshot(source)
    found: Any = NAME.fullmatch(source)
    if revision is not None and found["revision"] not in (None, revision):
        raise ValueError(
            f"revision is {revision}, but {source} names another one. Give "
            "one of them."
        )
    revision = revision or found["revision"] or constants.DEFAULT_REVISION

    def download(*patterns):
        try:
            return snapshot_download(
                found["name"],
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(UNUSED),
                local_files_only=offline or constants.HF_HUB_OFFLINE,
            )
        except (OSError, ValueError) as error:
            place = constants.ENDPOINT
            if offline or constants.HF_HUB_OFFLINE:
                place = f"the cache {constants.HF_HUB_CACHE} (offline)"
            raise FileNotFoundError(
                f"There is no folder {source} here, and no model of this name "
                f"and revision {revision} at {place}: "
                + " ".join(str(error).split())
            ) from error

    folder = download(*SMALL)
    revision = os.path.basename(folder)  # the commit, also of other files
    if os.path.isfile(os.path.join(folder, "hyperparams.yaml")):
        download(*SMALL, "*.ckpt")
    elif os.path.isfile(os.path.join(folder, "config.json")):
        download(*SMALL, "model*.safetensors", "model*.safetensors.index.json")
        if not any(x.endswith(".safetensors") for x in os.listdir(folder)):
            download(*SMALL, "pytorch_model.bin")
    return Snapshot(folder, found["name"], revision)


def local_folder(source: str | os.PathLike) -> str:
    """The folder of a model, downloaded to the cache if it is on the hub."""
    return fetch(source).folder
