"""Faces of utterances: finding, reading, views, embeddings.

The column ``face`` of an annotation names an image, a folder of images of one
face (in the order of time), or a video; ``clip.mp4#t=1.5,4`` is the video from
1.5 to 4 s. It is empty where there is none. Images should be cropped to the
face, as those of VoxCeleb are. torchvision is needed
(``pip install speechbrain_ssl[av]``), and torchcodec for videos.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from speechbrain_ssl import checks
from speechbrain_ssl.checks import checked, interval, one_of, whole
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.dataio.embedding import FileEmbeddings
from speechbrain_ssl.dataio.views import ViewSampler

COLUMN = "face"
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi")
SPAN = "#t="
# images of a folder or a video that are embedded, and that are tried if some
# cannot be read
FRAMES, TRIES = 8, 5
# images in a batch of ``try_faces``
BATCH = 128


class FaceError(audio.AudioError):
    """A face that cannot be used; the message names the file."""


class Frames(NamedTuple):
    """Images of one face."""

    total: int  # number of images
    read: Callable  # number of an image, from 0, to uint8 [3, height, width]


def find_faces(paths: Iterable[str]) -> dict[str, str]:
    """Finds faces beside audio files.

    The face of ``clip.wav`` is the image ``clip.jpg``, else the folder of
    images ``clip``, else the video ``clip.mp4`` (or another one of ``IMAGES``
    and ``VIDEOS``). A file of audio and video is its own face. Gives faces by
    the paths of audio files; files without a face are left out.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("a.wav", "a.jpg", "b.wav"):
    ...     (folder / name).touch()
    >>> found = find_faces([str(folder / "a.wav"), str(folder / "b.wav")])
    >>> [os.path.basename(face) for face in found.values()]
    ['a.jpg']
    """
    found = {}
    for folder, group in itertools.groupby(sorted(paths), os.path.dirname):
        if not os.path.isdir(folder or "."):
            continue  # inside of a tar file
        places: dict[tuple[str, int], str] = {}
        for entry in sorted(os.scandir(folder or "."), key=lambda e: e.name):
            stem, extension = os.path.splitext(entry.name)
            if entry.is_dir():
                places.setdefault((entry.name, 1), entry.path)
            elif extension.lower() in IMAGES:
                places.setdefault((stem, 0), entry.path)
            elif extension.lower() in VIDEOS:
                places.setdefault((stem, 2), entry.path)
        for path in group:
            stem = os.path.splitext(os.path.basename(path))[0]
            own = (places.get((stem, kind)) for kind in range(3))
            own = [p for p in own if p and (p == path or is_face(p))]
            if own:
                found[path] = os.path.join(folder, os.path.basename(own[0]))
    return found


def is_face(path: str) -> bool:
    """Whether a path is that of an image, a folder with images or a video."""
    if os.path.isdir(path):
        return bool(_images(path))
    extension = os.path.splitext(path.partition(SPAN)[0])[1].lower()
    return extension in (*IMAGES, *VIDEOS)


def face_of(path: str) -> str:
    """The face that belongs to a file of a trial list; empty without one.

    The file is an image, a video, or audio with a face beside it.
    """
    if is_face(path):
        return path
    return find_faces([path]).get(path, "")


def problem_of(face: str) -> str:
    """Why a face cannot be used; empty if an image of it can be read."""
    try:
        draw_image(face, np.random.default_rng(0))
    except FaceError as error:
        return str(error)
    return ""


def open_face(face: str) -> Frames:
    """Opens a cell of the column ``face``; a FaceError if it has no image."""
    if not face:
        raise FaceError("There is no face: the column face is empty.")
    if os.path.isdir(face):
        paths = _images(face)
        if not paths:
            raise FaceError(
                f"The folder {face} has no images ({', '.join(IMAGES)})."
            )
        return Frames(len(paths), lambda number: _read_image(paths[number]))
    path, _, span = face.partition(SPAN)
    if os.path.splitext(path)[1].lower() in VIDEOS:
        return _open_video(path, span)
    return Frames(1, lambda _: _read_image(face))


def draw_image(face: str, rng: np.random.Generator) -> torch.Tensor:
    """Reads a random image of a face, uint8 [3, height, width].

    Other images stand for damaged ones; a FaceError if none can be read.
    """
    frames = open_face(face)
    *order, last = rng.permutation(frames.total)[:TRIES].tolist()
    for number in order:
        with contextlib.suppress(FaceError):
            return frames.read(number)
    return frames.read(last)


def try_faces(
    embed: Callable,
    faces: Sequence[str],
    size: int,
    device: str | torch.device = "cpu",
) -> FileEmbeddings:
    """Embeds faces, and collects the errors of single ones.

    ``faces`` are cells of the column ``face``. The embedding of a folder or a
    video is the mean direction of those of ``FRAMES`` images, evenly spaced.
    ``embed`` maps pixels [batch, 3 * size * size] and relative lengths [batch]
    to embeddings [batch, emb_dim], in evaluation mode.
    """
    failed: dict[int, Exception] = {}
    rows: dict[int, torch.Tensor] = {}
    waiting: list[tuple[int, torch.Tensor]] = []

    def flush():
        if not waiting:
            return
        batch = torch.cat([images for _, images in waiting]).to(device)
        with torch.no_grad():
            found = embed(batch, torch.ones(len(batch), device=device))
        found = found.flatten(1).float().cpu()
        parts = found.split([len(images) for _, images in waiting])
        for (number, images), part in zip(waiting, parts):
            if len(images) > 1:
                part = F.normalize(part, dim=-1)
            rows[number] = part.mean(0)
            if not torch.isfinite(rows[number]).all():
                failed[number] = ValueError(
                    f"The embedding of {faces[number]} is NaN or infinite. "
                    "Check the weights of the encoder."
                )
        waiting.clear()

    for number, face in enumerate(faces):
        try:
            waiting.append((number, _whole_images(face, size)))
        except FaceError as error:
            failed[number] = error
        if sum(len(images) for _, images in waiting) >= BATCH:
            flush()
    flush()
    width = len(next(iter(rows.values()))) if rows else 0
    table = torch.full((len(faces), width), torch.nan)
    for number in rows.keys() - failed.keys():
        table[number] = rows[number]
    return FileEmbeddings(table, failed, [], {})


class FaceSampler:
    """Draws views of a face: crops of its images, each augmented by itself.

    It stands where ``ViewSampler`` stands for voices. All random numbers come
    from (seed, epoch, row, view); each view is of a random image of the folder
    or the video.

    Arguments
    ---------
    size : int
        Height and width of a global crop.
    global_crops : int
        Number of global crops.
    local_crops : int
        Number of local crops.
    local_size : int
        Height and width of a local crop.
    global_scale : list of float
        Smallest and largest share of the image's area in a global crop.
    local_scale : list of float
        The same for local crops.
    transforms : list of Callable
        Transforms of ``torchvision.transforms.v2`` that are applied to each
        crop, float [3, size, size] from 0 to 1.
    clean_views : bool
        Whether to add the whole image of each global crop without
        augmentation.
    seed : int
        Seed of all draws.
    max_unreadable : float
        Largest share of unreadable faces in an epoch.

    Example
    -------
    >>> sampler = FaceSampler(size=8, local_crops=1, local_size=4)
    >>> views, local = sampler.split(torch.zeros(5, 2 * 192 + 48))
    >>> [tuple(view.shape) for view in views + local]
    [(5, 192), (5, 192), (5, 48)]
    """

    columns = (COLUMN,)
    # what the training asks of samplers of audio
    partners, speeds, same_augmentation = None, (1.0,), False
    sample_rate = None

    @checked(
        size=whole(4),
        global_crops=whole(1),
        local_crops=whole(0),
        local_size=whole(4),
        global_scale=interval(checks.number(0.01, 1)),
        local_scale=interval(checks.number(0.01, 1)),
        clean_views=one_of(True, False),
        seed=whole(0),
        max_unreadable=checks.number(0, 1),
    )
    def __init__(
        self,
        size: int = 80,
        global_crops: int = 2,
        local_crops: int = 0,
        local_size: int = 40,
        global_scale: Sequence[float] = (0.5, 1.0),
        local_scale: Sequence[float] = (0.2, 0.5),
        transforms: Sequence[Callable] = (),
        clean_views: bool = False,
        seed: int = 0,
        max_unreadable: float = 0.25,
    ):
        self.face_size = size
        self.counts = (global_crops, local_crops)
        self.sizes = (size, local_size)
        self.frames = tuple(3 * n * n for n in self.sizes)
        self.scales = (tuple(global_scale), tuple(local_scale))
        self.transforms = list(transforms)
        self.clean_views = clean_views
        self.seed = seed
        self.max_unreadable = max_unreadable

    split = ViewSampler.split

    def prepare(self, utterances: Utterances) -> None:
        """Nothing: faces are augmented without others."""

    def to(self, device: torch.device | str) -> None:
        """Nothing: crops are augmented in the loader."""

    def augment(self, batch: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Returns the batch: crops are augmented in the loader."""
        return batch

    def speed_of(self, key: tuple[int, ...]) -> int:
        """Index of the only speed."""
        return 0

    def __call__(
        self, key: tuple[int, ...], face: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes the views of one face, of a cell of the column ``face``.

        ``key`` is epoch and row of the utterance. Gives the concatenated views,
        global crops first, then their clean views [pixels], and zeros [views,
        1] as draws: nothing is left to be applied.
        """
        views, clean, number = [], [], 0
        for kind, count in enumerate(self.counts):
            for _ in range(count):
                stream = (self.seed, *key, number)
                number += 1
                rng = np.random.default_rng(stream)
                image = draw_image(face, rng).float() / 255
                views.append(self._augmented(image, kind, rng))
                if self.clean_views and kind == 0:
                    clean.append(_squared(image, self.sizes[0]).flatten())
            views, clean = views + clean, []
        return torch.cat(views), torch.zeros(sum(self.counts), 1)

    def blank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views that stand for a face that is missing, as from a call."""
        global_crops = self.counts[0] * (1 + self.clean_views)
        length = global_crops * self.frames[0] + self.counts[1] * self.frames[1]
        return torch.zeros(length), torch.zeros(sum(self.counts), 1)

    def _augmented(self, image, kind, rng):
        """A crop of an image, transformed and flattened [pixels]."""
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(
            self.sizes[kind], self.scales[kind], antialias=True
        )
        # torchvision draws from torch's generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            for transform in (crop, *self.transforms):
                image = transform(image)
        return image.flatten()


def _images(folder):
    """Sorted images of a folder."""
    names = sorted(os.listdir(folder))
    return [
        os.path.join(folder, name)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGES and name[0] != "."
    ]


def _read_image(path):
    """An image as uint8 [3, height, width], upright."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except (
        *(OSError, ValueError, SyntaxError),
        Image.DecompressionBombError,
    ) as error:
        raise FaceError(f"Cannot read the image {path}: {error}") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _open_video(path, span):
    """Frames of a video, or of the seconds "start,stop" of it."""
    audio.import_torchcodec()
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(audio.absolute(path))  # a:b.mp4 is no URL
        count, rate = decoder.metadata.num_frames, decoder.metadata.average_fps
    except (OSError, RuntimeError, ValueError) as error:
        raise FaceError(f"Cannot read the video {path}: {error}") from error
    first, last = 0, count
    if span:
        try:
            start, stop = (float(second) for second in span.split(","))
        except ValueError:
            raise FaceError(
                f"{path}{SPAN}{span}: expected {SPAN}START,STOP in seconds."
            ) from None
        first, last = int(start * rate), min(count, int(np.ceil(stop * rate)))
    if first >= last:
        raise FaceError(f"{path} has no frame from {first} to {last}.")

    def read(number):
        try:
            return decoder[first + number]
        except (IndexError, RuntimeError, ValueError) as error:
            raise FaceError(
                f"Cannot read frame {first + number} of {path}: {error}"
            ) from error

    return Frames(last - first, read)


def _squared(image, size):
    """The middle square of an image, resized [3, size, size]."""
    from torchvision.transforms.v2 import functional

    side = min(image.shape[-2:])
    image = functional.center_crop(image, [side, side])
    return functional.resize(image, [size, size], antialias=True)


def _whole_images(face, size):
    """Pixels of evenly spaced images of a face [images, 3 * size * size]."""
    frames = open_face(face)
    count = min(FRAMES, frames.total)
    images = []
    problem: Exception = FaceError(f"{face} has no images.")
    for number in range(count):
        try:
            image = frames.read(number * frames.total // count)
        except FaceError as error:
            problem = error
            continue
        images.append(_squared(image.float() / 255, size).flatten())
    if not images:
        raise problem
    return torch.stack(images)
