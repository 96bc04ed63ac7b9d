"""Files beside the package: in the checkout, or in the installed wheel."""

import os
import pathlib

import speechbrain_ssl


def folder(name: str) -> pathlib.Path:
    """``recipes`` or ``hparams``: of the checkout, or the copy in the wheel."""
    package = pathlib.Path(speechbrain_ssl.__file__).parent
    checkout = package.parent / name
    return checkout if checkout.is_dir() else package / f"_{name}"


def encoder_files() -> dict[str, pathlib.Path]:
    """The YAMLs of encoders, by name.

    Example
    -------
    >>> encoder_files()["campplus"].name
    'campplus.yaml'
    """
    return {
        path.stem: path for path in sorted(folder("hparams").glob("*.yaml"))
    }


def encoder_file(name: str) -> str:
    """The path of the YAML of an encoder, from its name or its path."""
    if os.path.exists(name):
        return name
    return str(encoder_files().get(name, name))
