"""Views of the voice and of the face of one clip, for cross-modal training."""

import torch

from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.dataio.faces import FaceSampler
from speechbrain_ssl.dataio.views import ViewSampler

# between the epoch and row of a clip and the number of a view of its face, so
# that its random numbers are not those of the voice: views of both would have
# augmentation in common
FACES = 2000


class ClipSampler:
    """Draws views of voice and face; all are global crops.

    It stands where ``ViewSampler`` stands for voices alone. A clip without a
    readable face is replaced by another one, as one without readable audio is.

    Arguments
    ---------
    voice : ViewSampler
        Views of the voice, which come first.
    face : FaceSampler
        Views of the face.

    Raises
    ------
    ValueError
        If one of them has local crops, clean views or partners.

    Example
    -------
    >>> sampler = ClipSampler(ViewSampler(16000, 2, 0.1), FaceSampler(8))
    >>> views, _ = sampler.split(torch.zeros(5, 2 * 1600 + 2 * 192))
    >>> [tuple(view.shape) for view in views[1:3]]
    [(5, 1600), (5, 3, 8, 8)]
    """

    partners, face_size = None, None

    def __init__(self, voice: ViewSampler, face: FaceSampler):
        for name, sampler in (("voice", voice), ("face", face)):
            if (
                sampler.counts[1]
                or sampler.clean_views
                or sampler.partners is not None
            ):
                raise ValueError(
                    f"{name} of ClipSampler must have global crops only: set "
                    "local_crops to 0, clean_views to False and partners to "
                    "null"
                )
        self.voice, self.face = voice, face
        self.columns = (*voice.columns, *face.columns)
        self.counts = (voice.counts[0] + face.counts[0], 0)
        self.pixels = face.counts[0] * face.frames[0]
        self.sample_rate, self.speeds = voice.sample_rate, voice.speeds
        self.seed, self.max_unreadable = voice.seed, voice.max_unreadable

    def prepare(self, utterances: Utterances) -> None:
        """Prepares the augmentation of voices for the training set."""
        self.voice.prepare(utterances)

    def to(self, device: torch.device | str) -> None:
        """Moves the augmentation of voices, if it is used on the device."""
        self.voice.to(device)

    def speed_of(self, key: tuple[int, ...]) -> int:
        """Index of the speed of the voice."""
        return self.voice.speed_of(key)

    def __call__(
        self, key: tuple[int, ...], wav: str, start: int, stop: int, face: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes the views of one clip, as ``ViewSampler`` and ``FaceSampler`` do.

        Gives samples of the views of the voice, then pixels of those of the
        face [samples + pixels], and parameters of the voice's augmentation.
        """
        wavs, draws = self.voice(key, wav, start, stop)
        pixels, _ = self.face((*key, FACES), face)
        return torch.cat([wavs, pixels]), draws

    def augment(self, batch: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augments the voices of a batch, unless workers have done it."""
        wavs, pixels = self._parts(batch)
        return torch.cat([self.voice.augment(wavs, draws), pixels], dim=1)

    def split(
        self, batch: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Splits views [batch, samples + pixels] into global and local crops.

        The global ones are views of the voice [batch, time], then those of the
        face [batch, 3, height, width]; there are no local ones.
        """
        wavs, pixels = self._parts(batch)
        size = self.face.face_size
        images = self.face.split(pixels)[0]
        images = [image.unflatten(1, (3, size, size)) for image in images]
        return self.voice.split(wavs)[0] + images, []

    def _parts(self, batch):
        """Samples and pixels of a batch."""
        return batch[:, : -self.pixels], batch[:, -self.pixels :]
