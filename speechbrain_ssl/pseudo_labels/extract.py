"""Embeddings of the utterances of an annotation."""

import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.embedding import embed_files


def embed_utterances(
    embed, utterances, sample_rate, max_seconds=10.0, device="cpu"
):
    """Embeds the clean utterances of an annotation; processes share the work.

    Arguments
    ---------
    embed : Callable
        Waveforms [batch, time] and relative lengths [batch] to embeddings
        [batch, emb_dim]; in evaluation mode.
    utterances : Utterances
        The rows.
    sample_rate : int
        The encoder's sample rate in Hz.
    max_seconds : float
        Longer utterances are cut to their first seconds.
    device : str | torch.device
        Where the encoder is.

    Returns
    -------
    torch.Tensor
        float32 embeddings on the CPU, the same in all processes
        [utterances, emb_dim].

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a file is empty or its audio or embedding is not finite.
    """
    count, world = len(utterances), distributed.world_size()
    # equal parts; the last rows are done twice where they do not divide
    size = -(-count // world)
    first = min(distributed.rank() * size, max(count - size, 0))
    paths, spans = [], []
    for row in range(first, min(first + size, count)):
        item = utterances.row(row)
        frames = round(max_seconds * audio.sample_rate(item["wav"]))
        paths.append(item["wav"])
        spans.append((item["start"], min(item["stop"], item["start"] + frames)))
    mine = embed_files(
        embed, paths, sample_rate, device=device, progress=False, spans=spans
    )
    everyone = distributed.gather(mine.to(device)).cpu()
    whole = torch.empty(count, mine.shape[1])
    for rank, part in enumerate(everyone.split(size)):
        start = min(rank * size, max(count - size, 0))
        whole[start : start + len(part)] = part
    return whole
