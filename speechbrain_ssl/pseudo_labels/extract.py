"""Embeddings of the utterances of an annotation, in memory or on disk.

``extract`` writes a folder::

    embeddings.npy   float32 or float16 [rows, emb_dim], to be memory-mapped
    ids.json         ID of each row, in the order of the annotation
    failed.csv       utterances without a row, and why
    meta.json        how they were made; its "made" is the sign of completion
    chunks/          finished pieces, until all are there and joined
"""

import csv
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from speechbrain_ssl import distributed, hub
from speechbrain_ssl.checks import checked, number, one_of, optional, whole
from speechbrain_ssl.dataio import audio, embedding, faces
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.dataio.augmentation import Augmentation, stack_draws
from speechbrain_ssl.dataio.embedding import (
    EncoderError,
    FileEmbeddings,
    SilentError,
    try_files,
)
from speechbrain_ssl.files import (
    hash_of,
    read_json,
    refuse_changes,
    write_csv,
    write_json,
    write_whole,
)
from speechbrain_ssl.nnet.onnx_encoder import is_onnx

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16")
# if a whole chunk of at least this size fails, the cause is not one bad file
HOPELESS = 10
# a larger share of utterances without an embedding ends training
MAX_FAILED = 0.25


class Embeddings(NamedTuple):
    """What ``extract`` left in a folder.

    The settings in ``meta`` are hashes of encoder and annotation, rates,
    lengths, and rules for long files and silence; "made" has "embeddings"
    (SHA-256 of the file), "rows", "failed", "windowed" (utterances embedded in
    windows), "with_silence" and "silence_seconds" (digital silence left out).
    """

    # IDs of the utterances that could be embedded, in the order of the
    # annotation [rows]
    ids: list[str]
    # their embeddings, as the encoder gives them, mapped [rows, emb_dim]
    matrix: np.ndarray
    failed: dict[str, str]  # why each of the others could not, by ID
    meta: dict  # "settings" and, of complete embeddings, "made"


def embed_utterances(
    embed: Callable,
    utterances: Utterances,
    sample_rate: int,
    max_seconds: float = 10.0,
    device: str | torch.device = "cpu",
    rows: Sequence[int] | np.ndarray | None = None,
    face_size: int | None = None,
) -> torch.Tensor:
    """Embeds utterances without augmentation; processes share the work.

    ``embed`` maps waveforms [batch, time] and relative lengths [batch] to
    embeddings [batch, emb_dim], in evaluation mode. ``rows`` says which
    utterances, in the order wanted (None: all); longer ones are cut to their
    first ``max_seconds``. A face encoder has a ``face_size``, the height and
    width of its images, and gets pixels of faces. Gives float32 embeddings on
    the CPU, the same in all processes [utterances, emb_dim].

    An utterance that cannot be embedded gets zeros, with a warning: one damaged
    file must not end a training. More than a quarter of them are an error,
    which has the first reason.
    """
    rows = range(len(utterances)) if rows is None else rows
    count, world = len(rows), distributed.world_size()
    # equal parts; the last rows are done twice where they do not divide
    size = -(-count // world)
    first = min(distributed.rank() * size, max(count - size, 0))
    found = _embed_rows(
        embed,
        utterances,
        [int(row) for row in rows[first : first + size]],
        sample_rate,
        max_seconds,
        {"device": device},
        face_size,
    )
    mine, failed = found.rows, found.failed
    if len(failed) > MAX_FAILED * size:
        raise ValueError(
            f"{len(failed)} of {size} utterances cannot be embedded. The first "
            f"reason: {failed[min(failed)]}"
        ) from failed[min(failed)]
    if failed:
        logger.warning(
            "%d of %d utterances cannot be embedded; zeros stand for them. "
            "The first reason: %s",
            len(failed),
            size,
            failed[min(failed)],
        )
    mine = mine.nan_to_num()
    if world == 1:
        return mine
    everyone = distributed.gather(mine.to(device)).cpu()
    whole = torch.empty(count, mine.shape[1])
    for rank, part in enumerate(everyone.split(size)):
        start = min(rank * size, max(count - size, 0))
        whole[start : start + len(part)] = part
    return whole


@checked(
    max_seconds=optional(number(above=0)),
    dtype=one_of(*DTYPES),
    chunk_size=whole(1),
    batch_seconds=number(above=0),
    part_idx=whole(0),
    num_parts=whole(1),
)
def extract(
    embed: Callable,
    utterances: Utterances,
    folder: str | os.PathLike,
    sample_rate: int,
    encoder: str = "",
    max_seconds: float | None = None,
    dtype: str = "float32",
    chunk_size: int = 2048,
    batch_seconds: float = 120.0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    part_idx: int = 0,
    num_parts: int = 1,
    face_size: int | None = None,
    more_settings: Mapping[str, Any] | None = None,
) -> Embeddings | None:
    """Embeds utterances without augmentation to disk.

    Rows of similar length make a chunk of ``chunk_size``, which is a file that
    appears when it is complete. Chunks do not depend on the number of jobs: job
    ``part_idx`` of ``num_parts``, on whatever machine, does those of its part
    that are missing, and whoever finds all of them joins them. A job that was
    killed is started again by the same command, or its rest is done by a job
    with one part. Gives None while other parts are missing.

    Audio that cannot be read or embedded is listed in ``failed.csv`` and left
    out. To try it again, delete the folder. Long files and digital silence are
    treated by the rules of ``speechbrain_ssl.dataio.embedding``, which are in
    ``meta.json`` too.

    ``embed`` and ``face_size`` are as for ``embed_utterances``. ``encoder``
    tells its weights from others, see ``encoder_hash``; ``max_seconds`` None
    cuts no utterance; ``dtype`` is that of the file, float32 or float16;
    ``batch_seconds`` is the upper bound of the audio in a batch.
    ``more_settings`` are further settings of ``embed``.

    A folder of embeddings that were made with other settings is an error, as is
    an encoder that fails on all of the first chunk (EncoderError).
    """
    _check(embed, part_idx, num_parts)
    folder = os.path.abspath(folder)
    settings = {
        "encoder": encoder,
        "utterances": utterances.hash(),
        "sample_rate": sample_rate,
        "max_seconds": max_seconds,
        "dtype": dtype,
        "chunk_size": chunk_size,
        "window_seconds": embedding.WINDOW_SECONDS,
        "silence_dbfs": embedding.SILENCE_DBFS,
        "silence_seconds": embedding.SILENCE_SECONDS,
    }
    if face_size is not None:
        settings |= {"face_size": face_size, "face_frames": faces.FRAMES}
    settings |= more_settings or {}
    meta = _claim(folder, settings)
    chunks = _chunks(utterances, max_seconds, chunk_size)
    rank, world = distributed.rank(), distributed.world_size()
    if "made" not in meta:
        mine = chunks[part_idx * world + rank :: num_parts * world]
        todo = [chunk for chunk in mine if not _is_done(folder, chunk[0])]
        left = sum(len(rows) for _, rows in todo)
        with tqdm(total=left, unit="file", disable=not progress) as bar:
            for number, rows in todo:
                found = _embed_rows(
                    embed,
                    utterances,
                    rows.tolist(),
                    sample_rate,
                    max_seconds,
                    {"device": device, "batch_seconds": batch_seconds},
                    face_size,
                )
                if len(found.failed) == len(rows):
                    is_first = not any(_is_done(folder, n) for n, _ in chunks)
                    _check_hope(found, is_first)
                _write_chunk(folder, number, found, dtype)
                bar.update(len(rows))
    _wait(device)
    is_made = "made" in _read_meta(folder)
    if rank == 0 and not is_made:
        if all(_is_done(folder, number) for number, _ in chunks):
            _join(folder, utterances, chunks, settings)
    _wait(device)
    return load(folder) if "made" in _read_meta(folder) else None


def average_augmented(
    embed: Callable, augmentation: Augmentation, copies: int, seed: int = 0
) -> Callable:
    """Makes an encoder that hears several augmented copies of an utterance.

    The mean over random devices, rooms and noises depends less on the device,
    room and noise of the recording, which clusters would follow otherwise. The
    draws depend on the samples of the utterance and on the seed, so that an
    embedding does not depend on its batch. ``augmentation`` is prepared and on
    the device of the encoder. The result is called as ``embed`` is; its
    embeddings [batch, emb_dim] are means of unit vectors.
    """

    def averaged(wavs, wav_lens):
        sizes = (wav_lens * wavs.shape[1]).round().int().tolist()
        hashes = [
            zlib.crc32(wav[:size].numpy().tobytes())
            for wav, size in zip(wavs.cpu(), sizes)
        ]
        draws = [
            augmentation.draw(np.random.default_rng([seed, copy, key]))
            for copy in range(copies)
            for key in hashes
        ]
        size, found = len(wavs), []
        # small batches are slow: several copies in each, up to 64 rows
        step = size * max(64 // size, 1)
        for first in range(0, len(draws), step):
            part = stack_draws(draws[first : first + step])
            part = {name: value.to(wavs.device) for name, value in part.items()}
            times = len(draws[first : first + step]) // size
            heard = augmentation.apply(wavs.repeat(times, 1), part)
            rows = embed(heard, wav_lens.repeat(times))
            rows = rows.reshape(times, size, -1).float()
            found.append(F.normalize(rows, dim=-1).sum(0).cpu())
        return torch.stack(found).sum(0) / copies

    return averaged


def load(folder: str | os.PathLike) -> Embeddings:
    """Opens what ``extract`` wrote; the matrix is mapped, not read.

    Incomplete folders, and files that do not fit each other, are errors.
    """
    if not os.path.isfile(os.path.join(folder, "meta.json")):
        raise FileNotFoundError(
            f"{folder} is no folder of embeddings: it has no meta.json."
        )
    meta = _read_meta(folder)
    if "made" not in meta:
        raise ValueError(
            f"The embeddings in {folder} are not complete. Run the "
            "extraction again, for all parts."
        )
    with open(os.path.join(folder, "ids.json"), encoding="utf-8") as file:
        ids = json.load(file)
    path = os.path.join(folder, "failed.csv")
    with open(path, newline="", encoding="utf-8") as file:
        failed = {row["ID"]: row["reason"] for row in csv.DictReader(file)}
    matrix = np.load(os.path.join(folder, "embeddings.npy"), mmap_mode="r")
    if not len(ids) == len(matrix) == meta["made"]["rows"]:
        raise ValueError(
            f"{folder} holds {len(matrix)} embeddings and {len(ids)} IDs, but "
            f"meta.json says {meta['made']['rows']}. Delete it and extract "
            "again."
        )
    return Embeddings(ids, matrix, failed, meta)


def save(
    folder: str | os.PathLike,
    ids: Sequence[str],
    matrix: np.ndarray,
    failed: Mapping[str, str],
    settings: Mapping[str, Any],
    made: Mapping[str, Any],
) -> Embeddings:
    """Writes embeddings that were made of others as a folder, and opens it.

    ``settings`` and ``made`` are for ``meta``; what the matrix says is added.
    """
    path = os.path.join(folder, "embeddings.npy")
    with write_whole(path, "wb") as file:
        np.save(file, matrix)
    _write_lists(folder, ids, failed)
    made = {
        **made,
        "rows": len(matrix),
        "emb_dim": matrix.shape[1],
        "embeddings": hash_of(path),
    }
    meta = {"settings": settings, "made": made}
    write_json(os.path.join(folder, "meta.json"), meta)
    return load(folder)


def encoder_hash(model_folder: str | os.PathLike) -> str:
    """Hash of weights and settings, which tells an encoder from all others.

    ``model_folder`` is an exported folder, its name on the Hugging Face hub, or
    an ONNX file.
    """
    if is_onnx(model_folder):
        return hash_of(model_folder)
    model_folder = hub.local_folder(model_folder)
    names = ("embedding_model.ckpt", "hyperparams.yaml")
    return hash_of(*(os.path.join(model_folder, name) for name in names))


def _stretch(utterances, row, max_seconds):
    """Path of an utterance, and first and last frame to read."""
    item = utterances.row(row)
    start, stop = item["start"], item["stop"]
    # shorter utterances do not need the rate, which the header has
    if max_seconds is not None and utterances.durations[row] > max_seconds:
        frames = round(max_seconds * audio.sample_rate(item["wav"]))
        stop = min(stop, start + frames)
    return item["wav"], (start, stop)


def _check(embed, part_idx, num_parts):
    """Refuses settings that cannot work."""
    if not 0 <= part_idx < num_parts:
        raise ValueError(
            "Parts are numbered from 0: expected 0 <= part_idx < num_parts, "
            f"found part_idx {part_idx} and num_parts {num_parts}."
        )
    # a bound method belongs to a module, or is one
    module = getattr(embed, "__self__", embed)
    if getattr(module, "training", False):
        raise ValueError(
            "The encoder is in training mode: its embeddings would depend on "
            "the batch. Call its eval() first."
        )


def _claim(folder, settings):
    """Records the settings of a new folder, or compares them with its own."""
    path = os.path.join(folder, "meta.json")
    if os.path.exists(path):
        meta = _read_meta(folder)
        refuse_changes(
            meta["settings"],
            settings,
            what=f"The extraction to {folder}",
            advice="Name another folder, or delete this one.",
        )
        return meta
    if os.path.isdir(os.path.join(folder, "chunks")):
        raise ValueError(
            f"{folder} has chunks of embeddings but no meta.json that says "
            "how they were made. Delete that folder, or name another one."
        )
    meta = {"settings": settings}
    write_json(path, meta)
    return meta


def _read_meta(folder):
    """Content of meta.json."""
    return read_json(
        os.path.join(folder, "meta.json"),
        advice=f"Delete {folder} and extract the embeddings again.",
    )


def _chunks(utterances, max_seconds, chunk_size):
    """Numbered rows of similar length, the longest first."""
    seconds = utterances.durations.numpy()
    if max_seconds is not None:
        seconds = np.minimum(seconds, max_seconds)
    order = np.argsort(-seconds, kind="stable")
    firsts = range(0, len(order), chunk_size)
    return [
        (number, order[first : first + chunk_size])
        for number, first in enumerate(firsts)
    ]


def _chunk_path(folder, number, kind):
    return os.path.join(folder, "chunks", f"{number:06d}.{kind}")


def _is_done(folder, number):
    return os.path.isfile(_chunk_path(folder, number, "npy"))


def _embed_rows(
    embed, utterances, rows, sample_rate, max_seconds, settings, face_size
):
    """Embeddings of the audio or, with a ``face_size``, the faces of rows."""
    if face_size is not None:
        images = [utterances.row(row)[faces.COLUMN] for row in rows]
        return faces.try_faces(embed, images, face_size, settings["device"])
    failed, paths, spans = {}, {}, {}
    for index, row in enumerate(rows):
        try:
            paths[index], spans[index] = _stretch(utterances, row, max_seconds)
        except (OSError, RuntimeError, ValueError) as error:
            failed[index] = error
    if not paths:
        return FileEmbeddings(torch.zeros(len(rows), 0), failed, [], {})
    found = try_files(
        embed,
        paths.values(),
        sample_rate,
        progress=False,
        spans=list(spans.values()),
        **settings,
    )
    places = list(paths)
    whole = torch.full((len(rows), found.rows.shape[1]), torch.nan)
    whole[places] = found.rows
    failed.update({places[n]: error for n, error in found.failed.items()})
    silence = {places[n]: seconds for n, seconds in found.silence.items()}
    windowed = [places[n] for n in found.windowed]
    return FileEmbeddings(whole, failed, windowed, silence)


def _check_hope(found, is_first):
    """Stops if a whole chunk failed for a reason that is not in its files."""
    count, first = len(found.rows), found.failed[min(found.failed)]
    if isinstance(first, EncoderError) and is_first:
        raise first
    # half an hour of silence in a long recording makes a chunk of windows
    is_silence = all(isinstance(e, SilentError) for e in found.failed.values())
    if count >= HOPELESS and not is_silence:
        raise ValueError(
            f"None of {count} utterances can be embedded. Check data_folder "
            f"and the encoder. The first reason: {first}"
        ) from first


def _write_chunk(folder, number, found, dtype):
    """Writes a chunk; the array last, as sign of completion."""
    rows = found.rows.numpy()
    with np.errstate(over="ignore"):
        converted = rows.astype(dtype)
    failed = {index: str(error) for index, error in found.failed.items()}
    for index in np.flatnonzero(np.isinf(converted).any(1)).tolist():
        failed[index] = f"The embedding is too large for {dtype}."
        converted[index] = np.nan
    record = {
        "failed": failed,
        "windowed": len(found.windowed),
        "silence": list(found.silence.values()),
    }
    with write_whole(_chunk_path(folder, number, "json")) as file:
        json.dump(record, file)
    with write_whole(_chunk_path(folder, number, "npy"), "wb") as file:
        np.save(file, converted)


def _join(folder, utterances, chunks, settings):
    """Makes one file of all chunks; those are deleted at the very end."""
    try:
        failed, windowed, silence = {}, 0, []
        for number, rows in chunks:
            record = read_json(_chunk_path(folder, number, "json"))
            for index, reason in record["failed"].items():
                failed[int(rows[int(index)])] = reason
            windowed += record["windowed"]
            silence += record["silence"]
        made = _join_arrays(folder, len(utterances), chunks, failed)
    except FileNotFoundError:
        if "made" in _read_meta(folder):  # by another job, just now
            return
        raise
    ids = list(utterances.ids())
    kept = [name for row, name in enumerate(ids) if row not in failed]
    _write_lists(
        folder, kept, {ids[row]: failed[row] for row in sorted(failed)}
    )
    made |= {
        "windowed": windowed,
        "with_silence": len(silence),
        "silence_seconds": round(sum(silence), 1),
    }
    meta = {"settings": settings, "made": made}
    write_json(os.path.join(folder, "meta.json"), meta)
    for line in embedding.describe(windowed, len(silence), sum(silence)):
        logger.info(line)
    if failed:
        logger.warning(
            "%d of %d utterances could not be embedded: see %s",
            len(failed),
            len(utterances),
            os.path.join(folder, "failed.csv"),
        )
    shutil.rmtree(os.path.join(folder, "chunks"), ignore_errors=True)


def _join_arrays(folder, count, chunks, failed):
    """Writes embeddings.npy; returns what meta.json says of it."""
    usable = np.ones(count, dtype=bool)
    usable[list(failed)] = False
    if not usable.any():
        raise ValueError(
            f"None of {count} utterances can be embedded. The first reason: "
            f"{failed[min(failed)]} All reasons are in {folder}/chunks: "
            "correct the audio or the encoder, then delete that folder."
        )
    place = np.cumsum(usable) - 1
    rows, path = int(usable.sum()), os.path.join(folder, "embeddings.npy")
    # written, not memory-mapped: a full disk is an error and not a SIGBUS
    with write_whole(path, "wb") as file:
        data = None
        for number, chunk in chunks:
            part = np.load(_chunk_path(folder, number, "npy"))
            kept = usable[chunk]
            if not kept.any():
                continue
            if data is None:
                shape = rows, part.shape[1]
                header = np.lib.format.header_data_from_array_1_0(part)
                np.lib.format.write_array_header_1_0(
                    file, {**header, "shape": shape}
                )
                file.flush()
                data = file.tell()
            for row, embedding in zip(place[chunk[kept]], part[kept]):
                offset = data + int(row) * embedding.nbytes
                _write_at(file, embedding.tobytes(), offset)
    return {
        "rows": rows,
        "failed": len(failed),
        "emb_dim": shape[1],
        "embeddings": hash_of(path),
    }


def _write_at(file, data, offset):
    """Writes all bytes at an offset; a single call may write fewer."""
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


def _write_lists(folder, ids, failed):
    """Writes the IDs of the rows, and the utterances without a row."""
    with write_whole(os.path.join(folder, "ids.json")) as file:
        json.dump(list(ids), file, indent=0, ensure_ascii=False)
    write_csv(
        os.path.join(folder, "failed.csv"), ("ID", "reason"), failed.items()
    )


def _wait(device):
    """Until all processes of ``torchrun`` are here."""
    bool(distributed.everywhere(torch.tensor(True, device=device)))
