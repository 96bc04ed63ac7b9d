"""Files beside the package: in the checkout, or in the installed wheel."""

import os
import pathlib

import speechbrain_ssl


def folder(name: str) -> pathlib.Path:
    """A folder of the repository.

    Arguments
    ---------
    name : str
        ``recipes`` or ``hparams``.

    Returns
    -------
    pathlib.Path
        That of the checkout, or its copy in the installed package.
    """
    package = pathlib.Path(speechbrain_ssl.__file__).parent
    checkout = package.parent / name
    return checkout if checkout.is_dir() else package / f"_{name}"


def encoder_files() -> dict[str, pathlib.Path]:
    """The YAMLs of encoders, by name.

    Returns
    -------
    dict of str to pathlib.Path
        Such as ``campplus``.

    Example
    -------
    >>> encoder_files()["campplus"].name
    'campplus.yaml'
    """
    return {
        path.stem: path for path in sorted(folder("hparams").glob("*.yaml"))
    }


def encoder_file(name: str) -> str:
    """The path of the YAML of an encoder.

    Arguments
    ---------
    name : str
        A path, or a name of ``encoder_files``.

    Returns
    -------
    str
        The path of that name; other names, and those of existing paths, as
        they are.
    """
    if os.path.exists(name):
        return name
    return str(encoder_files().get(name, name))
