"""Quality of an encoder, and a decision threshold, without labels.

The trials come from unlabelled audio. The two sides of a target trial are
parts of one utterance that do not overlap; those of a non-target trial are
parts of two utterances. All parts have the same length. One side is as
recorded, the other one has a strong augmentation of its own (RIR, noise,
frequency response, telephone line): otherwise microphone and room, which the
parts of an utterance share, would be enough to recognize it. Both sides
augmented would be two changes of channel, where real trials have one; an
encoder that is fair to real channels then ranks too low.

Trials and augmentation depend on the audio and the seed, not on the encoder.
Therefore figures of encoders on the same audio can be compared.

**Choice of non-targets.** Two utterances may be of one speaker. Pairs from one
source (the folder of the file) are left out. Of the other utterances, the
share ``NEAREST`` with the most similar statistics of MFCCs is left out, because
recordings of one session are among them. The next ones, up to the share
``FARTHEST``, are used: they have a similar channel or voice and are harder than
random ones.

**Error model of the thresholds.** A threshold accepts a share p of the
non-target pairs. An unknown share s of these pairs is of one speaker; of these,
the share h is accepted. The rate f of false acceptances follows from
p = (1 - s) f + s h with h from 0 to 1, so f is between (p - s) / (1 - s) and
p / (1 - s). The threshold is that with p equal to the promised rate. The
promise holds if all pairs are of two speakers (s = 0); otherwise the true rate
is lower, and ``false_acceptance_low`` is its lower limit at the given s. Two
conditions have thresholds of their own: ``threshold`` is for recordings as they
are, ``threshold_augmented`` for two recordings of different channels, whose
cosines are lower. The promise is about recordings like this audio: on clean
recordings of one kind, thresholds from audio of many channels are too low.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.quality import agreement
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.dataio.audio import AudioError
from speechbrain_ssl.dataio.augmentation import (
    Augmentation,
    Channel,
    Gain,
    Noise,
    Reverberation,
    Telephone,
    stack_draws,
)
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.evaluation import metrics
from speechbrain_ssl.evaluation.scoring import unit
from speechbrain_ssl.pseudo_labels.statistics import MFCCStatistics

logger = logging.getLogger(__name__)

# Shares of the other utterances, by similarity: the first ones may be of the
# same session, those up to the second share are the non-targets.
NEAREST, FARTHEST = 0.02, 0.2
# Folders are sources of recordings if there are this many of them.
FEWEST_SOURCES = 20
# Fewer utterances give no error rate that is worth reading.
FEWEST = 20
# Share of the utterances that are long enough for two parts.
LONG_ENOUGH = 0.75
# Parts with a lower peak are silence.
FAINTEST = 1e-3
# Mean number of utterances in a cluster, for the agreement of clusters.
CLUSTER_SIZE = 3
BATCH = 64


class SelfCheck:
    """Trials without labels, ready to measure encoders.

    Arguments
    ---------
    utterances : Utterances
        Unlabelled audio that the encoders were not trained on.
    sample_rate : int
        Sample rate of the encoders in Hz.
    count : int
        Number of utterances to use, from as many folders as possible.
    seconds : float
        Length of a part. It is lowered until three quarters of the utterances
        have two parts.
    copies : int
        Number of augmented copies of each part.
    noise_folder, rir_folder : str
        Recordings for the augmentation; None: generated noise and RIRs.
    false_acceptance : float
        Promised rate of the thresholds.
    same_speaker : float
        Largest share of the non-target pairs that may be of one speaker, for
        the lower limit of that rate.
    seed : int
        Seed of the choice of utterances and parts and of the augmentation.

    Raises
    ------
    ValueError
        If fewer than 20 utterances can be used.
    """

    stats_help = {
        "selfcheck": (
            "Cross-entropy (bits) of same utterance against others on held-out "
            "audio, without labels; lower is better."
        ),
        "selfcheck_EER": (
            "Equal error rate (%) of same utterance against others on held-out "
            "audio, without labels; compare it only between models."
        ),
        "selfcheck_effective_rank": (
            "Effective number of dimensions of the held-out embeddings."
        ),
        "selfcheck_agreement": (
            "Agreement (adjusted Rand index) of clusters of two augmented "
            "copies of the held-out audio; higher is better."
        ),
    }

    @checked(
        count=whole(FEWEST),
        seconds=number(above=0),
        copies=whole(1),
        false_acceptance=number(above=0, below=0.5),
        same_speaker=number(0, below=0.5),
        seed=whole(0),
    )
    def __init__(
        self,
        utterances: Utterances,
        sample_rate: int = 16000,
        count: int = 300,
        seconds: float = 2.0,
        copies: int = 2,
        noise_folder: str | None = None,
        rir_folder: str | None = None,
        false_acceptance: float = 0.01,
        same_speaker: float = 0.0,
        seed: int = 0,
    ):
        self.sample_rate = sample_rate
        self.copies = copies
        self.false_acceptance = false_acceptance
        self.same_speaker = same_speaker
        self.seed = seed
        sources = sources_of(utterances)
        ids = list(utterances.ids())
        durations = utterances.durations.numpy()
        limit = float(np.quantile(durations, 1 - LONG_ENOUGH))
        self.seconds = min(seconds, limit / 2)
        order = in_order(ids, sources, seed)
        long_enough = durations >= 2 * self.seconds
        rows = [row for row in order if long_enough[row]]
        self.parts, rows = _read_parts(
            utterances, rows, count, self.seconds, sample_rate, seed
        )
        self.ids = [ids[row] for row in rows]
        if len(rows) < FEWEST:
            raise ValueError(
                f"The self-check needs {FEWEST} utterances or more, found "
                f"{len(rows)} that can be read, are no silence and last "
                f"{2 * self.seconds:.2g} s. Give it more audio: a larger "
                "selfcheck_share, or a folder."
            )
        self.sources = sources[rows]
        self.hard = hard_pairs(
            _statistics(self.parts, sample_rate), self.sources
        )
        self.augmentation = strong_augmentation(noise_folder, rir_folder, seed)
        self.augmentation.prepare(sample_rate)
        self.draws = [
            [
                self.augmentation.draw(_generator(seed, name, part, copy))
                for part in (0, 1)
                for name in self.ids
            ]
            for copy in range(copies)
        ]

    def __call__(
        self, embed: Callable, device: str | torch.device = "cpu"
    ) -> dict:
        """Measures an encoder in evaluation mode, see ``try_files``.

        Gives what ``measure`` does, and the numbers of "utterances" and
        "seconds" of a part.
        """
        return {
            **measure(
                *self.embed(embed, device),
                self.hard,
                self.false_acceptance,
                self.same_speaker,
            ),
            "utterances": len(self.ids),
            "seconds": round(self.seconds, 3),
        }

    def embed(
        self, embed: Callable, device: str | torch.device = "cpu"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of all parts.

        The first and second parts as recorded [2, utterances, emb_dim], and
        their augmented copies [copies, 2, utterances, emb_dim].
        """
        copies = [self._embed(embed, device, draws) for draws in self.draws]
        return self._embed(embed, device, None), np.stack(copies)

    def _embed(self, embed, device, draws):
        """Embeddings of a copy of all parts [2, utterances, emb_dim]."""
        parts, rows = self.parts.flatten(0, 1), []
        for first in range(0, len(parts), BATCH):
            wavs = parts[first : first + BATCH].float() / 32768
            if draws is not None:
                parameters = stack_draws(draws[first : first + BATCH])
                wavs = self.augmentation.apply(wavs, parameters)
            with torch.no_grad():
                lengths = torch.ones(len(wavs), device=device)
                found = embed(wavs.to(device), lengths)
            rows.append(found.flatten(1).float().cpu())
        return torch.cat(rows).unflatten(0, (2, -1)).numpy()


def strong_augmentation(
    noise_folder: str | None = None,
    rir_folder: str | None = None,
    seed: int = 0,
) -> Augmentation:
    """The augmentation of the self-check: each part has its own channel.

    Noise and RIRs without a folder are generated from the seed.
    """
    return Augmentation(
        effects={
            "rir": Reverberation(rir_folder, simulated=200),
            "noise": Noise(noise_folder, noise_snr=(0.0, 15.0)),
            "channel": Channel(
                low_cut=(20.0, 500.0),
                high_cut=(0.3, 1.0),
                tilt=(-6.0, 6.0),
                peak=(-10.0, 10.0),
            ),
            "telephone": Telephone(),
            "gain": Gain(),
        },
        chances=[{"rir": 0.6}, {"noise": 0.8}, {"telephone": 0.25}],
        seed=seed,
    )


def measure(
    clean: np.ndarray,
    augmented: np.ndarray,
    hard: np.ndarray,
    false_acceptance: float = 0.01,
    same_speaker: float = 0.0,
) -> dict:
    """Figures of an encoder from the embeddings of parts.

    ``clean`` has embeddings of the first and second parts as recorded [2,
    utterances, emb_dim], ``augmented`` the same of augmented copies [copies, 2,
    utterances, emb_dim]. ``hard`` says whether the first part of a row and the
    second part of a column are a non-target trial [utterances, utterances]. The
    other arguments are those of ``SelfCheck``.

    Gives "cross_entropy" in bits (after an affine map of the cosines, fitted on
    these trials), "EER" with its 95 % interval "EER_low" and "EER_high" in
    percent, "effective_rank", "agreement" (None for less than two copies),
    "threshold", "false_acceptance", "false_acceptance_low" and
    "threshold_augmented".
    """
    count = len(hard)
    clean, augmented = map(_unit, (clean, augmented))
    enrol, test = np.nonzero(hard | np.eye(count, dtype=bool))
    targets = (enrol == test).astype(int)
    scores = [
        pair
        for first, second in augmented
        for pair in (clean[0] @ second.T, first @ clean[1].T)
    ]
    values = np.concatenate([found[enrol, test] for found in scores])
    copies = len(scores)
    targets = np.tile(targets, copies)
    rate, _ = metrics.eer(values, targets)
    low, high = metrics.bootstrap(
        values, targets, np.tile(enrol, copies), np.tile(test, copies)
    )
    return {
        "cross_entropy": cross_entropy(values, targets),
        "EER": 100 * rate,
        "EER_low": 100 * low,
        "EER_high": 100 * high,
        "effective_rank": metrics.effective_rank(
            np.cov(np.concatenate(clean), rowvar=False)
        ),
        "agreement": _agreement(augmented),
        **threshold(
            (clean[0] @ clean[1].T)[hard], false_acceptance, same_speaker
        ),
        "threshold_augmented": threshold(
            values[targets == 0], false_acceptance
        )["threshold"],
    }


def stats_of(figures: dict) -> dict[str, float]:
    """The figures that a training logs and chooses checkpoints by.

    Names are those of ``SelfCheck.stats_help``.
    """
    found = {"selfcheck": figures["cross_entropy"]}
    for name in ("EER", "effective_rank", "agreement"):
        if figures[name] is not None:
            found[f"selfcheck_{name}"] = figures[name]
    return found


def cross_entropy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Cllr of scores after the best affine map, found on the same trials.

    In bits, from 0 to 1, which is the cost of scores that say nothing.

    Example
    -------
    >>> round(cross_entropy(np.array([0.1, 0.1]), np.array([1, 0])), 3)
    1.0
    """
    rows = ((scores - scores.mean()) / (scores.std() + 1e-12))[:, None]
    model = LogisticRegression(class_weight="balanced", C=1e6)
    model.fit(rows, targets)
    return metrics.cllr(model.decision_function(rows), targets)


def threshold(
    scores: np.ndarray, false_acceptance: float, same_speaker: float = 0.0
) -> dict[str, float]:
    """A threshold from the scores of pairs of utterances, most of two speakers.

    The docstring of the module has the error model. Gives "threshold",
    "false_acceptance" (the promise) and "false_acceptance_low", the lower limit
    of the true rate if at most the share ``same_speaker`` of the pairs is of
    one speaker.

    Example
    -------
    >>> threshold(np.arange(1000), 0.01)["threshold"]
    990.0
    """
    place = max(int(false_acceptance * len(scores)), 1)
    value = np.partition(scores, -place)[-place]
    low = max(false_acceptance - same_speaker, 0) / (1 - same_speaker)
    return {
        "threshold": float(value),
        "false_acceptance": false_acceptance,
        "false_acceptance_low": low,
    }


def sources_of(utterances: Utterances) -> np.ndarray:
    """The source of each utterance: the folder of its file.

    Where there are fewer than ``FEWEST_SOURCES`` folders, they do not tell
    recordings apart, and each file is a source.
    """
    paths = list(utterances.wavs())
    folders = [os.path.dirname(path) for path in paths]
    names = folders if len(set(folders)) >= FEWEST_SOURCES else paths
    return np.unique(names, return_inverse=True)[1]


def held_out(utterances: Utterances, share: float) -> np.ndarray:
    """Chooses utterances to keep out of training, by whole sources.

    The choice depends on the names of files and folders only, so that trainings
    with other settings keep out the same audio. ``share`` is that of the
    utterances. Gives a bool for each utterance.
    """
    sources = sources_of(utterances)
    wanted = round(share * len(sources))
    names = {}
    for source, path in zip(sources.tolist(), utterances.ids()):
        names[source] = min(path, names.get(source, path))
    sizes = np.bincount(sources)
    chosen, total = [], 0
    for source in sorted(names, key=lambda source: _hash(0, names[source])):
        if total >= wanted:
            break
        chosen.append(source)
        total += sizes[source]
    return np.isin(sources, chosen)


def in_order(ids: Sequence[str], sources: np.ndarray, seed: int) -> list[int]:
    """Rows in a random order: first one of each source, then the second ones.

    The order depends on the IDs and the seed.
    """
    rows = sorted(range(len(ids)), key=lambda row: _hash(seed, ids[row]))
    seen, turns = {}, []
    for row in rows:
        turn = seen[sources[row]] = seen.get(sources[row], -1) + 1
        turns.append(turn)
    return [rows[place] for place in np.argsort(turns, kind="stable")]


def hard_pairs(statistics: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Chooses the non-target trials by the rule in the module's docstring.

    ``statistics`` of MFCCs are [utterances, dim], the result is bool
    [utterances, utterances].
    """
    scaled = (statistics - statistics.mean(0)) / (statistics.std(0) + 1e-6)
    rows = unit(scaled + 1e-6).numpy()
    cosines = rows @ rows.T
    cosines[sources[:, None] == sources] = -np.inf
    found = np.zeros(cosines.shape, dtype=bool)
    for row, order in enumerate(np.argsort(-cosines, axis=1, kind="stable")):
        order = order[np.isfinite(cosines[row, order])]
        first = int(np.ceil(NEAREST * len(order)))
        last = max(int(np.ceil(FARTHEST * len(order))), first + 1)
        found[row, order[first:last]] = True
    return found


def _read_parts(utterances, rows, count, seconds, sample_rate, seed):
    """Two parts of up to ``count`` utterances, int16 [2, utterances, time]."""
    sampler = ViewSampler(sample_rate, 2, seconds, min_gap=0.0, seed=seed)
    found, kept, problems = [], [], {}
    for row in rows:
        if len(kept) == count:
            break
        item = utterances.row(row)
        try:
            views, _ = sampler(
                (0, row), item["wav"], item["start"], item["stop"]
            )
        except AudioError as error:
            problems[item["ID"]] = str(error)
            continue
        parts = views.unflatten(0, (2, -1))
        if (parts.amax(1) - parts.amin(1)).min() < FAINTEST:
            problems[item["ID"]] = "a part of it is silent"
            continue
        found.append((parts.clamp(-1, 1) * 32767).round().to(torch.int16))
        kept.append(row)
    if problems:
        name, reason = next(iter(problems.items()))
        logger.warning(
            "The self-check leaves out %d utterances, such as %s: %s",
            len(problems),
            name,
            reason,
        )
    if not found:
        return torch.zeros(2, 0, 1, dtype=torch.int16), kept
    return torch.stack(found, dim=1), kept


def _statistics(parts, sample_rate):
    """Mean statistics of MFCCs of both parts [utterances, dim]."""
    encoder = MFCCStatistics(sample_rate).eval()
    rows = [
        encoder(wavs.float() / 32768, torch.ones(len(wavs)))
        for wavs in parts.flatten(0, 1).split(BATCH)
    ]
    return torch.cat(rows).unflatten(0, (2, -1)).mean(0).numpy()


def _unit(embeddings):
    """Scales embeddings to length 1 [..., emb_dim]."""
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    return unit(rows).numpy().reshape(embeddings.shape)


def _agreement(augmented):
    """Agreement of clusters of the first two copies of all utterances."""
    if len(augmented) < 2:
        return None
    clusters = max(augmented[0].shape[1] // CLUSTER_SIZE, 2)
    labels = [
        TwoStage(clusters, linkage="ward").fit_predict(copy.mean(0))
        for copy in augmented[:2]
    ]
    return agreement(*labels)["ARI"]


def _generator(seed, name, part, copy):
    """Random generator of a copy of a part."""
    return np.random.default_rng([_hash(seed, name) % 2**32, part, copy])


def _hash(seed, name):
    """A number that depends on the seed and a name."""
    text = f"{seed} {name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
