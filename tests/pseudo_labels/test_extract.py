"""Embeddings of an annotation's utterances."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.extract import embed_utterances


@pytest.fixture
def utterances(tmp_path):
    """Stretches of one file of growing numbers."""
    path = str(tmp_path / "long.wav")
    ramp = np.arange(32000, dtype=np.float32) / 32000
    soundfile.write(path, ramp, 16000, subtype="FLOAT")
    spans = [(0, 8000), (8000, 32000), (100, 16100)]
    rows = [
        (f"u{n}", (stop - start) / 16000, path, start, stop)
        for n, (start, stop) in enumerate(spans)
    ]
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv")


def ends(wavs, lengths):
    """First and last valid sample."""
    last = (lengths * wavs.shape[1]).round().long() - 1
    return torch.stack([wavs[:, 0], wavs[range(len(wavs)), last]], 1)


def test_rows_are_embedded_in_order_from_their_stretch(utterances):
    found = embed_utterances(ends, utterances, 16000) * 32000
    assert found.round().tolist() == [[0, 7999], [8000, 31999], [100, 16099]]


def test_long_utterances_are_cut(utterances):
    found = embed_utterances(ends, utterances, 16000, 0.75) * 32000
    assert found.round().tolist() == [[0, 7999], [8000, 19999], [100, 12099]]
