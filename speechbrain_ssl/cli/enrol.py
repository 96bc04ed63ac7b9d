"""Adds recordings of a speaker to a folder of enrolled speakers::

    > speechbrain-ssl enrol SPEAKERS alice a1.wav a2.wav --model MODEL_FOLDER
    > speechbrain-ssl enrol SPEAKERS bob b1.wav
    > speechbrain-ssl identify SPEAKERS unknown.wav

``--model`` is needed once. The folder ``SPEAKERS`` has ``database.json`` (the
model and its hash) and a file ``NAME.npz`` for each speaker, with the arrays
``embeddings`` [files, emb_dim] and ``files`` [files]. A speaker who is enrolled
again gets more files; ``--replace`` removes the earlier ones. To remove a
speaker, delete the file.
"""

import os
import urllib.parse
from collections.abc import Sequence

import numpy as np
import torch
from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import hub
from speechbrain_ssl.cli.score import embed_paths
from speechbrain_ssl.dataio.audio import absolute
from speechbrain_ssl.dataio.embedding import EncoderError
from speechbrain_ssl.files import read_json, write_json, write_whole
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, load_encoder
from speechbrain_ssl.pseudo_labels.extract import encoder_hash

DATABASE, ENDING = "database.json", ".npz"


def enrol(
    database: str,
    name: str,
    files: Sequence[str],
    model: str | None = None,
    replace: bool = False,
    device: str | None = None,
    trust: Sequence[str] = (),
) -> int:
    """Adds recordings of a speaker to a folder of speakers, which is made.

    ``model`` is an exported folder, or its name on the hub; None: that of the
    database. ``replace`` removes the speaker's earlier recordings. ``device``
    and ``trust`` are as for ``verify``. Gives the number of recordings that the
    speaker has now. Another model than that of the database, and a file that
    the speaker already has, are errors.
    """
    path = _speaker_path(database, name)
    model = model_of_database(database, model)
    embeddings, known = np.zeros((0, 0), np.float32), []
    if os.path.exists(path) and not replace:
        embeddings, known = _read_speaker(path)
    own = [absolute(file) for file in files]
    twice = [file for n, file in enumerate(own) if file in known + own[:n]]
    if twice or not own:
        found = f"{twice[0]} again" if twice else "none"
        raise ValueError(
            f"Expected new recordings of {name!r}, found {found}. Use "
            "--replace to enrol a speaker anew."
        )
    encoder = load_encoder(model, device or infer_device(), trust)
    rows = embed_paths(encoder, own).rows.numpy()
    if len(known):
        rows = np.concatenate([embeddings, rows])
    if not os.path.exists(os.path.join(database, DATABASE)):
        place = model if hub.is_name(model) else os.path.abspath(model)
        content = {"model": place, "hash": encoder_hash(model)}
        write_json(os.path.join(database, DATABASE), content)
    with write_whole(path, "wb") as file:
        np.savez(file, embeddings=rows, files=np.array([*known, *own]))
    return len(rows)


def speakers_of(database: str) -> dict[str, torch.Tensor]:
    """Embeddings of the recordings of each speaker [files, emb_dim]."""
    found = {}
    for file in sorted(os.listdir(database)):
        if file.endswith(ENDING):
            rows, _ = _read_speaker(os.path.join(database, file))
            name = urllib.parse.unquote(file[: -len(ENDING)])
            found[name] = torch.from_numpy(rows)
    if not found:
        raise ValueError(f"{database} has no speaker. Enrol one first.")
    return found


def model_of_database(database: str, model: str | None = None) -> str:
    """The model of a folder of speakers.

    The folder may be missing if a model is given: an exported folder, or its
    name on the hub. It must be the model of the speakers that are enrolled.
    """
    path = os.path.join(database, DATABASE)
    if not os.path.exists(path):
        if model is None:
            raise FileNotFoundError(
                f"{database} is no folder of speakers: it has no {DATABASE}. "
                "Enrol a first speaker, and name the model: --model FOLDER."
            )
        return model
    content = read_json(path, advice=f"Delete {database} and enrol again.")
    model = model or content["model"]
    if not (os.path.exists(model) or hub.is_name(model)):
        raise FileNotFoundError(
            f"There is no model {model}, which {path} names. If it was moved, "
            "give it: --model FOLDER."
        )
    if encoder_hash(model) != content["hash"]:
        raise ValueError(
            f"The speakers in {database} are not enrolled with the model "
            f"{model}: its weights or settings are others. Enrol them again "
            "in another folder."
        )
    return model


def _speaker_path(database, name):
    """File of a speaker; what a file name cannot have is quoted.

    Earlier versions quoted all letters but those of ASCII, and names of some
    forty letters were too long.
    """
    if not name or name.startswith("."):
        raise ValueError(
            "Expected a name of a speaker that is not empty and does not "
            f"begin with a dot, found {name!r}."
        )
    file = name.replace("%", "%25").replace("/", "%2F")
    earlier = os.path.join(database, urllib.parse.quote(name, " ") + ENDING)
    if os.path.exists(earlier):
        return earlier
    return os.path.join(database, file + ENDING)


def _read_speaker(path):
    """Embeddings [files, emb_dim] and files of a speaker."""
    try:
        with np.load(path) as found:
            rows, files = found["embeddings"], found["files"].tolist()
        if rows.ndim != 2 or not len(rows) == len(files) > 0:
            raise ValueError(f"embeddings {rows.shape} of {len(files)} files")
    except (EOFError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a file of an enrolled speaker: {error}. Delete it "
            "and enrol the speaker again."
        ) from error
    return rows, files


def main(argv: list[str] | None = None) -> None:
    """The command line of ``enrol``."""
    parser = command_parser(__doc__)
    parser.add_argument("database", metavar="SPEAKERS")
    parser.add_argument("name")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--model", help="needed for a new folder")
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--device")
    add_trust(parser)
    args = parser.parse_args(argv)
    with one_line("enrol", EncoderError):
        count = enrol(**vars(args))
    print(f"{args.name}: {count} recordings in {args.database}")
