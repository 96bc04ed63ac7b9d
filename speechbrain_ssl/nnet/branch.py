"""One of two siamese networks: features, encoder, head."""

import functools
from typing import NamedTuple

import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.precision import full_precision


class BranchOutput(NamedTuple):
    """Outputs of a branch for views of the same utterances.

    ``embedding`` has speaker embeddings, before the head [views, batch,
    emb_dim]; ``projection`` the head's outputs, the space of the loss [views,
    batch, proj_dim]; ``index`` rows of the utterances in the training CSV
    [batch], for objectives that keep something per utterance (where the
    teacher's differ, the keys come from other utterances); ``view_id`` the
    number of each view: the same one in student and teacher is the same
    augmented crop. None stands for 0, 1, 2 ...
    """

    embedding: torch.Tensor
    projection: torch.Tensor
    # instead of tuple.index
    index: torch.Tensor | None = None  # type: ignore[assignment]
    view_id: tuple | None = None


def check_views(
    objective: torch.nn.Module,
    views: BranchOutput,
    dim: int | None = None,
    utterances: int = 1,
) -> None:
    """Checks width and number of utterances of an objective's input.

    ``dim`` None allows any width; ``utterances`` are the fewest of all
    processes together.

    Example
    -------
    >>> views = BranchOutput(torch.zeros(2, 8, 4), torch.zeros(2, 8, 4))
    >>> check_views(torch.nn.Identity(), views, dim=4, utterances=2)
    """
    name = type(objective).__name__
    _, batch, found = views.projection.shape
    if dim is not None and found != dim:
        raise ValueError(
            f"{name} expects projections of {dim}, got {found}: change the "
            "width it was made for, or the head"
        )
    count = batch * distributed.world_size()
    if count < utterances:
        raise ValueError(
            f"{name} needs {utterances} utterances or more, got {count}: "
            "enlarge the batch"
        )


def gather_views(
    objective: torch.nn.Module, views: BranchOutput
) -> torch.Tensor:
    """Projections of all processes in full precision [batch, views, dim].

    There must be two views or more of two utterances or more.
    """
    # utterances first: processes are concatenated along the first axis
    points = full_precision(views.projection).transpose(0, 1)
    points = distributed.gather_with_gradient(points)
    batch, count, _ = points.shape
    if count < 2 or batch < 2:
        raise ValueError(
            f"{type(objective).__name__} needs two views or more of two "
            f"utterances or more, got {count} of {batch}: ask the view sampler "
            "for more crops, or enlarge the batch"
        )
    return points


def different_views(
    student: BranchOutput, teacher: BranchOutput | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists pairs of a view of the student and another view of the teacher.

    Gives positions in student and teacher (may be the student, too) of all
    pairs of views that are not the same crop; pairs of the first view of the
    student come first. They are int64 [pairs] on the device of the views: an
    index that comes from the host would make it wait for the device. It is an
    error if there is no teacher, or no such pair.

    Example
    -------
    >>> views = BranchOutput(torch.zeros(2, 8, 4), torch.zeros(2, 8, 4))
    >>> different_views(views, views)
    (tensor([0, 1]), tensor([1, 0]))
    """
    if teacher is None:
        raise ValueError(
            "This objective needs a teacher, but the modules have none: give "
            "the brain an EMATeacher"
        )
    view_ids = [
        range(len(views.projection)) if views.view_id is None else views.view_id
        for views in (student, teacher)
    ]
    return _pairs(*map(tuple, view_ids), student.projection.device)


@functools.lru_cache(maxsize=64)
def _pairs(mine, others, device):
    """Pairs of different crops; sent to a device once."""
    pairs = [
        (s, t)
        for s, view in enumerate(mine)
        for t, other in enumerate(others)
        if view != other
    ]
    if not pairs:
        raise ValueError(
            "This objective needs two different views, got "
            f"{len(mine)} of the student and {len(others)} of the "
            "teacher: ask the view sampler for more crops"
        )
    return tuple(torch.tensor(pairs, device=device).T.contiguous().unbind())


class Branch(torch.nn.Module):
    """Waveform views to embeddings and projections.

    Views of equal length share one pass, so that batch normalization sees
    them together, as in DINO (https://arxiv.org/abs/2104.14294).

    Arguments
    ---------
    compute_features : torch.nn.Module
        Waveforms [batch, time] to features [batch, frames, channels].
    mean_var_norm : torch.nn.Module
        Feature normalization, called with features and relative lengths.
    embedding_model : torch.nn.Module
        Features to embeddings [batch, 1, emb_dim].
    head : torch.nn.Module
        Embeddings [batch, emb_dim] to projections [batch, proj_dim]; the
        identity by default.
    erasing : torch.nn.Module
        Applied to normalized features in training, such as RandomErasing;
        None: nothing. It is not part of an exported model.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    >>> from speechbrain.processing.features import InputNormalization
    >>> encoder = ECAPA_TDNN(40, channels=[16] * 4 + [48], lin_neurons=8)
    >>> norm = InputNormalization(norm_type="sentence", std_norm=False)
    >>> branch = Branch(Fbank(), norm, encoder)
    >>> views = branch([torch.randn(2, 8000), torch.randn(2, 4000)])
    >>> views.embedding.shape
    torch.Size([2, 2, 8])
    """

    def __init__(
        self,
        compute_features: torch.nn.Module,
        mean_var_norm: torch.nn.Module,
        embedding_model: torch.nn.Module,
        head: torch.nn.Module | None = None,
        erasing: torch.nn.Module | None = None,
    ):
        super().__init__()
        self.compute_features = compute_features
        self.mean_var_norm = mean_var_norm
        self.embedding_model = embedding_model
        self.head = torch.nn.Identity() if head is None else head
        self.erasing = torch.nn.Identity() if erasing is None else erasing

    def _apply(self, fn, *args, **kwargs):
        """Moves the tensors of the features that are not buffers, too.

        SpeechBrain keeps window and filters in plain attributes and sends
        them to the device at each call, which waits for the device.
        """
        for part in self.compute_features.modules():
            for name, value in list(vars(part).items()):
                if isinstance(value, torch.Tensor):
                    moved = fn(value)
                    setattr(part, name, moved)
                    if hasattr(part, "device_inp"):  # where filters are made
                        part.device_inp = moved.device
        return super()._apply(fn, *args, **kwargs)

    def forward(self, views: list[torch.Tensor]) -> BranchOutput:
        """Encodes views [batch, time] of any lengths, in their order."""
        lengths = [view.shape[-1] for view in views]
        encoded = {}
        for length in dict.fromkeys(lengths):
            same = [view for view in views if view.shape[-1] == length]
            embedding = self.embed(torch.cat(same))
            encoded[length] = iter(embedding.chunk(len(same)))
        embedding = torch.stack([next(encoded[length]) for length in lengths])
        projection = self.head(embedding.flatten(0, 1))
        return BranchOutput(
            embedding, projection.unflatten(0, embedding.shape[:2])
        )

    def noise(self, samples: int) -> torch.Tensor:
        """Reproducible noise [2, samples] to try the network with.

        A network of images has a length of its own.
        """
        length = getattr(self.compute_features, "input_length", samples)
        generator = torch.Generator().manual_seed(0)
        return 0.1 * torch.randn(2, length, generator=generator)

    def embed(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeds waveforms [batch, time], without the head [batch, emb_dim].

        Relative lengths [batch] are all ones by default.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), device=wavs.device)
        feats = self.mean_var_norm(self.compute_features(wavs), wav_lens)
        embedding = self.embedding_model(self.erasing(feats), wav_lens)
        # [batch, 1, emb_dim] from ECAPA and x-vectors, [batch, emb_dim] from
        # SpeechBrain's ResNet
        return embedding.flatten(1)
