"""Faces: where they are found, what of them is read, and how views are drawn."""

import os

import numpy as np
import pytest
import torch

from speechbrain_ssl.dataio import audio, faces
from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)

pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")


def picture(path, color=0, size=(12, 10)):
    """An image of one color with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(color).integers(0, 9, (*size[::-1], 3))
    Image.fromarray((noise + color).astype(np.uint8)).save(path)
    return str(path)


def video(path, colors, rate=10):
    """A video with a frame of each gray, where torchcodec and FFmpeg are."""
    try:
        audio.import_torchcodec()
    except OSError as error:
        pytest.skip(str(error))
    from torchcodec.encoders import VideoEncoder

    frames = torch.tensor(colors, dtype=torch.uint8).view(-1, 1, 1, 1)
    frames = frames.expand(-1, 3, 32, 32).contiguous()
    VideoEncoder(frames, frame_rate=rate).to_file(str(path))
    return str(path)


def mean_color(image):
    return float(image.float().mean())


def test_image_wins_over_folder_and_folder_over_video(tmp_path):
    for name in ("a.wav", "a.mp4", "b.wav", "b.mp4", "c.wav", "d.wav"):
        (tmp_path / name).touch()
    picture(tmp_path / "a.png")
    picture(tmp_path / "a" / "1.jpg")
    picture(tmp_path / "b" / "1.jpg")
    (tmp_path / "c.mov").touch()
    (tmp_path / "d").mkdir()  # a folder without images
    paths = [str(tmp_path / f"{stem}.wav") for stem in "abcd"]
    found = faces.find_faces(paths)
    names = {os.path.basename(k): os.path.basename(v) for k, v in found.items()}
    assert names == {"a.wav": "a.png", "b.wav": "b", "c.wav": "c.mov"}


def test_file_of_audio_and_video_is_its_own_face(tmp_path):
    path = str(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").touch()
    assert faces.find_faces([path]) == {path: path}


def test_time_span_limits_the_frames_of_a_video(tmp_path):
    path = video(tmp_path / "a.mp4", [0] * 10 + [120] * 10 + [240] * 10)
    frames = faces.open_face(f"{path}#t=1.0,2.0")
    assert frames.total == 10
    colors = [mean_color(frames.read(n)) for n in range(frames.total)]
    assert colors == pytest.approx([120] * 10, abs=4)
    assert faces.open_face(path).total == 30
    for span in ("#t=5,9", "#t=2", "#t=a,b"):
        with pytest.raises(faces.FaceError, match="a.mp4"):
            faces.open_face(path + span)


def test_a_relative_path_with_a_colon_is_no_url(tmp_path, monkeypatch):
    video(tmp_path / "10:30.mp4", [120] * 3)
    monkeypatch.chdir(tmp_path)
    assert faces.problem_of("10:30.mp4") == ""


def test_damaged_images_give_way_to_others_of_the_folder(tmp_path):
    picture(tmp_path / "a" / "1.jpg", 100)
    (tmp_path / "a" / "2.jpg").write_bytes(b"no image")
    good = (tmp_path / "a" / "1.jpg").read_bytes()
    (tmp_path / "a" / "3.jpg").write_bytes(good[: len(good) // 2])
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image = faces.draw_image(str(tmp_path / "a"), rng)
        assert mean_color(image) == pytest.approx(104, abs=3)
    found = faces.try_faces(lambda x, _: x[:, :5], [str(tmp_path / "a")], 8)
    assert not found.failed


def test_reason_names_the_damaged_file(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no image")
    assert "a.jpg" in faces.problem_of(str(path))
    assert "column face is empty" in faces.problem_of("")
    assert faces.problem_of(picture(tmp_path / "b.jpg")) == ""


@pytest.fixture
def sampler():
    from torchvision.transforms import v2

    transforms = [v2.ColorJitter(0.4, 0.4), v2.RandomErasing(0.5)]
    return faces.FaceSampler(
        8, 2, 1, 6, transforms=transforms, clean_views=True, seed=3
    )


def test_views_depend_on_seed_epoch_row_and_view_only(sampler, tmp_path):
    face = picture(tmp_path / "a.jpg", 90)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    views, draws = sampler((2, 5), face)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(views, sampler((2, 5), face)[0])
    assert not torch.equal(views, sampler((3, 5), face)[0])
    (first, second, *clean), (local,) = sampler.split(views[None])
    assert not torch.equal(first, second)
    assert [v.shape[1] for v in (first, local)] == [3 * 64, 3 * 36]
    assert torch.equal(*clean) and draws.shape == (3, 1)


def test_views_of_a_folder_are_of_different_images(sampler, tmp_path):
    for n in range(6):
        picture(tmp_path / "a" / f"{n}.png", 40 * n)
    found = set()
    for epoch in range(4):
        views, _ = sampler((epoch, 0), str(tmp_path / "a"))
        clean = sampler.split(views[None])[0][2:]
        found |= {round(255 * float(view.mean())) // 40 for view in clean}
    assert len(found) > 3


def test_blank_views_have_the_length_of_views(sampler, tmp_path):
    views, draws = sampler((0, 0), picture(tmp_path / "a.jpg"))
    blank, blank_draws = sampler.blank()
    assert blank.shape == views.shape and blank_draws.shape == draws.shape


def test_embedding_of_a_folder_is_the_mean_direction(tmp_path):
    one = [picture(tmp_path / "a" / f"{n}.png", 30 + 90 * n) for n in (0, 1)]
    folder = str(tmp_path / "a")

    def embed(pixels, lengths):
        return torch.stack([pixels.mean(1), pixels[:, 0]], dim=1)

    found = faces.try_faces(embed, [*one, "", folder], size=8)
    assert list(found.failed) == [2] and found.rows[2].isnan().all()
    mean = torch.nn.functional.normalize(found.rows[:2], dim=1).mean(0)
    assert torch.allclose(found.rows[3], mean)


def test_rows_without_a_face_are_left_out(tmp_path):
    rows = [
        ("a", 1.0, "$data_root/ä.wav", 0, 10, "$data_root/ä.jpg"),
        ("b", 2.0, "$data_root/b.wav", 0, 20, ""),
        ("c", 3.0, "$data_root/c.wav", 5, 30, "/x/c.mp4#t=1,2"),
    ]
    write_annotation(tmp_path / "t.csv", rows, extra=("face",))
    whole = read_annotation(tmp_path / "t.csv", "/audio", extra=("face",))
    kept = whole.having("face")
    assert [kept.row(n) for n in range(2)] == [whole.row(0), whole.row(2)]
    assert kept.row(0)["face"] == "/audio/ä.jpg"
    with pytest.raises(ValueError, match="has a face"):
        write_annotation(tmp_path / "t.csv", rows[1:2], extra=("face",))
        read_annotation(tmp_path / "t.csv", "/", extra=("face",)).having("face")
