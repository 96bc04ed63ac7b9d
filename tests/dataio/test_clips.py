"""Views of clips are those of both samplers, and share no random numbers."""

import pytest
import torch

from speechbrain_ssl.dataio.audio import AudioError
from speechbrain_ssl.dataio.augmentation import Augmentation, Gain
from speechbrain_ssl.dataio.clips import FACES, ClipSampler
from speechbrain_ssl.dataio.faces import FaceSampler
from speechbrain_ssl.dataio.views import ViewSampler
from tests.dataio.test_faces import picture
from tests.models import write_noise

pytest.importorskip("torchvision")


def samplers(augment_on="workers"):
    louder = Augmentation({"gain": Gain([6, 6.1])}, [{"gain": 1.0}], seed=3)
    voice = ViewSampler(
        16000, 2, 0.1, augmentation=louder, augment_on=augment_on, seed=3
    )
    louder.prepare(16000)
    return voice, FaceSampler(8, 2, seed=3)


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_views_are_those_of_both_samplers(tmp_path, augment_on):
    wav = write_noise(tmp_path / "a.wav", 1.0, seed=1)
    for n in range(20):
        face = picture(tmp_path / "a" / f"{n}.png", 10 * n)
    face = str(tmp_path / "a")
    voice, images = samplers(augment_on)
    clips = ClipSampler(voice, images)
    row, key = (wav, 0, 16000), (4, 2)
    views, draws = clips(key, *row, face)
    found, local = clips.split(clips.augment(views[None], draws[None]))
    heard, parameters = voice(key, *row)
    expected = voice.split(voice.augment(heard[None], parameters[None]))[0]
    seen = images.split(images((*key, FACES), face)[0][None])[0]
    assert len(found) == 4 == sum(clips.counts) and not local
    assert all(torch.equal(*pair) for pair in zip(found, expected))
    for image, flat in zip(found[2:], seen):
        assert torch.equal(image, flat.view(1, 3, 8, 8))
    alone = images.split(images(key, face)[0][None])[0]
    assert not torch.equal(torch.cat(alone), torch.cat(seen))
    assert clips.speed_of(key) == voice.speed_of(key)


def test_clip_without_a_readable_face_cannot_be_used(tmp_path):
    wav = write_noise(tmp_path / "a.wav", 1.0, seed=1)
    damaged = tmp_path / "a.png"
    damaged.write_bytes(b"damaged")
    for face in ("", str(damaged)):
        with pytest.raises(AudioError):  # so that another clip replaces it
            ClipSampler(*samplers())((0, 0), wav, 0, 16000, face)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("voice", {"local_crops": 1, "local_seconds": 0.1}),
        ("voice", {"clean_views": True}),
        ("face", {"local_crops": 1}),
    ],
)
def test_other_views_than_global_crops_are_refused(name, settings):
    voice, face = samplers()
    if name == "voice":
        voice = ViewSampler(16000, 2, 0.1, **settings)
    else:
        face = FaceSampler(8, **settings)
    with pytest.raises(ValueError, match=f"{name} of ClipSampler"):
        ClipSampler(voice, face)
