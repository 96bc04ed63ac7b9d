"""The face branch: shapes, and an export that the plain loader reads."""

import numpy as np
import pytest
import torch

from speechbrain_ssl.exporting import export
from speechbrain_ssl.inference import embed_faces, load_encoder
from speechbrain_ssl.loading import face_size_of
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.face import (
    ClipBranch,
    FaceResNet,
    PixelNorm,
    Pixels,
)
from tests.brains import tiny

pytest.importorskip("torchvision")
HPARAMS = """\
face_compute_features: !new:speechbrain_ssl.nnet.face.Pixels {size: 16}
face_mean_var_norm: !new:speechbrain_ssl.nnet.face.PixelNorm {}
face_embedding_model: !new:speechbrain_ssl.nnet.face.FaceResNet
    emb_dim: 6
    depth: 10
"""


@pytest.fixture(scope="module")
def branch():
    torch.manual_seed(0)
    return Branch(Pixels(16), PixelNorm(), FaceResNet(6, depth=10)).eval()


def test_views_of_two_sizes_are_embedded(branch):
    views = branch([torch.rand(3, 3 * 16 * 16), torch.rand(3, 3 * 24 * 24)])
    assert views.embedding.shape == (2, 3, 6)


def test_pixels_have_the_color_and_place_that_they_had():
    image = torch.rand(2, 3, 5, 5)
    assert torch.equal(Pixels(5)(image.flatten(1)), image)
    with pytest.raises(ValueError, match="does not take audio"):
        Pixels(5)(torch.zeros(2, 16000))


def test_depth_is_that_of_the_name():
    for depth, count in ((10, 9), (18, 17), (34, 33)):
        convolutions = [
            m
            for name, m in FaceResNet(4, depth).named_modules()
            if isinstance(m, torch.nn.Conv2d) and "downsample" not in name
        ]
        assert len(convolutions) == count  # and one linear layer


def test_embeddings_of_a_batch_have_no_common_direction():
    torch.manual_seed(0)
    found = FaceResNet(6, depth=10).train()(torch.rand(4, 3, 32, 32))
    assert torch.allclose(found.mean(0), torch.zeros(6), atol=1e-5)


def test_branch_of_clips_gives_what_its_branches_give(branch):
    voice = Branch(tiny.Frames(), tiny.AsTheyAre(), tiny.Pooled())
    wavs, images = torch.randn(2, 3, 800), torch.rand(2, 3, 3, 16, 16)
    found = ClipBranch(voice, branch)([*wavs, *images])
    heard, seen = voice([*wavs]), branch([*images.flatten(2)])
    for name in ("embedding", "projection"):
        both = [getattr(output, name) for output in (heard, seen)]
        assert torch.equal(getattr(found, name), torch.cat(both))
    other = Branch(Pixels(16), PixelNorm(), FaceResNet(7, depth=10)).eval()
    with pytest.raises(ValueError, match="6 dimensions, those of faces 7"):
        ClipBranch(voice, other)([*wavs, *images])


def test_export_is_read_by_the_plain_loader(branch, tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = export(branch, HPARAMS, str(tmp_path / "model"), prefix="face_")
    assert face_size_of(load_encoder(folder)) == 16
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    (row,) = embed_faces(folder, [str(tmp_path / "a.png")])
    flat = torch.from_numpy(pixels).permute(2, 0, 1).flatten().float() / 255
    with torch.no_grad():
        assert torch.allclose(row, branch.embed(flat[None])[0], atol=1e-4)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# Face encoder" in card and "embed_faces(" in card
    assert "SpeakerRecognition" not in card
    with pytest.raises(OSError, match="b.png"):
        embed_faces(folder, [str(tmp_path / "b.png")])
