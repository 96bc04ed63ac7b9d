"""Embeddings of audio files, in batches of nearly equal length."""

import collections
import concurrent.futures
import functools

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speechbrain_ssl.dataio import audio

# utterances share a batch if at most this share of the shorter is padding
MAX_PADDING = 0.01
# shorter files are tiled: ECAPA-TDNN needs a few frames to reflect its borders
MIN_SECONDS = 0.1
# threads that read audio, and batches that they read ahead of the encoder
READERS = 4
BATCHES_AHEAD = 4


def embed_files(
    embed,
    paths,
    sample_rate=16000,
    batch_seconds=120.0,
    device="cpu",
    progress=True,
    spans=None,
):
    """Embeds whole audio files, or a stretch of each.

    Only files of (nearly) equal length share a batch, so that padding
    hardly changes an embedding. Files shorter than 0.1 s are repeated up to
    that length. Threads read ahead of the encoder.

    Arguments
    ---------
    embed : Callable
        Waveforms [batch, time] and relative lengths [batch] to embeddings
        [batch, emb_dim] or [batch, 1, emb_dim]; in evaluation mode.
    paths : list of str
        The audio files, of any rate and number of channels.
    sample_rate : int
        The encoder's sample rate in Hz.
    batch_seconds : float
        Upper bound of the audio in a batch, in seconds with padding; a longer
        file is a batch of its own.
    device : str | torch.device
        Where the encoder is.
    progress : bool
        Whether to show a progress bar.
    spans : list of tuple of int
        First frame of each file and the one after the last, at the file's
        own rate; None embeds whole files.

    Returns
    -------
    torch.Tensor
        float32 embeddings on the CPU, in the order of ``paths``
        [files, emb_dim].

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a file is empty or the audio or embedding of a file is NaN or
        infinite; the message names the file.
    """
    paths = list(paths)
    if not paths:
        raise ValueError("Expected audio files to embed, found none.")
    rows = [None] * len(paths)
    spans = [(0, None)] * len(paths) if spans is None else spans
    batches = _read_ahead(paths, spans, sample_rate, batch_seconds)
    bar = tqdm(total=len(paths), unit="file", disable=not progress)
    with bar, torch.no_grad():
        for batch, wavs in batches:
            lengths = torch.tensor([len(wav) for wav in wavs])
            padded = pad_sequence(wavs, batch_first=True).to(device)
            wav_lens = (lengths / lengths.max()).to(device)
            embeddings = embed(padded, wav_lens).flatten(1).float().cpu()
            _check_embeddings(embeddings, [paths[index] for index in batch])
            for index, embedding in zip(batch, embeddings):
                rows[index] = embedding
            bar.update(len(batch))
    return torch.stack(rows)


def _read_ahead(paths, spans, sample_rate, batch_seconds):
    """Yields batches of indices and their waveforms, longest first."""
    load = functools.partial(_load, sample_rate=sample_rate)
    length = functools.partial(_length, sample_rate=sample_rate)
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        lengths = np.fromiter(
            pool.map(length, paths, spans), np.int64, len(paths)
        )
        for batch in _batches(lengths, batch_seconds * sample_rate):
            wavs = [pool.submit(load, paths[i], spans[i]) for i in batch]
            pending.append((batch, wavs))
            if len(pending) > BATCHES_AHEAD:
                batch, wavs = pending.popleft()
                yield batch, [wav.result() for wav in wavs]
        for batch, wavs in pending:
            yield batch, [wav.result() for wav in wavs]


def _batches(lengths, budget):
    """Splits files into batches of nearly equal length.

    Longest first, so that memory runs out at once or never.
    """
    batch = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        if batch:
            longest = lengths[batch[0]]
            too_short = lengths[index] < (1 - MAX_PADDING) * longest
            if too_short or longest * (len(batch) + 1) > budget:
                yield batch
                batch = []
        batch.append(index)
    yield batch


def _length(path, span, sample_rate):
    """Samples of a stretch of a file at the encoder's rate."""
    start, stop = span
    if stop is None:
        stop, rate, _ = audio.info(path)
    else:
        # remembered: who chose the stretch has often asked for it, too
        rate = audio.sample_rate(path)
    return -(-(stop - start) * sample_rate // rate)


def _load(path, span, sample_rate):
    """A stretch of a file, long enough for an encoder [time]."""
    wav = audio.load(path, sample_rate, *span)
    if not len(wav):
        raise ValueError(f"{path} holds no audio samples.")
    if not torch.isfinite(wav).all():
        raise ValueError(
            f"{path} holds NaN or infinite samples. Write the file again."
        )
    shortest = round(MIN_SECONDS * sample_rate)
    if len(wav) < shortest:
        wav = wav.repeat(-(-shortest // len(wav)))[:shortest]
    return wav


def _check_embeddings(embeddings, names):
    """Refuses a wrong number of rows and values that are not finite."""
    if len(embeddings) != len(names):
        raise ValueError(
            f"Expected embeddings [batch, emb_dim] of {len(names)} files, "
            f"found shape {list(embeddings.shape)}."
        )
    finite = torch.isfinite(embeddings).all(1)
    if not finite.all():
        name = names[int(finite.int().argmin())]
        raise ValueError(
            f"The embedding of {name} is NaN or infinite. Check the weights "
            "of the encoder (did training diverge?) and this file."
        )
