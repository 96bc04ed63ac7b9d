"""Stage two: classification of pseudo-labels that a gate selects."""

import math
import os
from typing import Any, NamedTuple

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_ssl import distributed
from speechbrain_ssl.brains.base import (
    EpochLog,
    SpeakerBrain,
    StepResult,
    writing,
)
from speechbrain_ssl.brains.collapse import CollapseStats
from speechbrain_ssl.brains.unreadable import UnreadableUtterances
from speechbrain_ssl.clustering.quality import centroids
from speechbrain_ssl.dataio import audio, faces
from speechbrain_ssl.devices import send
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.pseudo_labels import modalities
from speechbrain_ssl.pseudo_labels.channels import classes_of_channels
from speechbrain_ssl.pseudo_labels.decisions import Decisions
from speechbrain_ssl.pseudo_labels.extract import embed_utterances
from speechbrain_ssl.pseudo_labels.labels import Labels

FACE = "face_"


class Modality(NamedTuple):
    """Voice or face: a branch, its gate and what it decided."""

    # begins the names of its modules, items, statistics and files; empty for
    # the voice
    prefix: str
    sampler: Any  # its views
    gate: Any  # fitted to its losses
    decisions: Decisions  # of an epoch
    gate_log: EpochLog  # record of its gate


class Prediction(NamedTuple):
    """What a modality says about a batch."""

    embedding: torch.Tensor  # of the augmented crops [batch, emb_dim]
    cosines: torch.Tensor  # of these to all class weights [batch, weights]
    # the same of clean views; None before labels are corrected
    clean_cosines: torch.Tensor | None
    present: torch.Tensor  # bool, which clips have the modality [batch]
    rows: torch.Tensor  # int64 numbers of these clips in the batch [clips]


class PseudoLabelBrain(SpeakerBrain):
    """Trains an encoder on the classes of a label file.

    Modules: ``encoder`` (a Branch without head) and ``classifier``, with as
    many classes as the labels for each speed of the view sampler: with speed
    perturbation, a class at another speed is a class of its own (H. Yamamoto
    et al., Interspeech 2019).

    With the modules ``face_encoder`` and ``face_classifier`` it is
    audio-visual: each branch has its own gate, all learn one label of each
    clip, and the mean of their sharpened probabilities corrects it (see
    ``speechbrain_ssl.pseudo_labels.modalities``). A clip without a face, or
    with an unreadable one, trains the voice alone.

    Hyperparameters beside those of SpeakerBrain: ``view_sampler`` (of one
    global crop, with its clean view where labels are corrected); ``loss`` (a
    GatedLoss); ``gate``, fitted at the end of each epoch to the logarithms of
    the losses of all utterances; ``centroid_start`` (whether class weights
    start at the mean embeddings of the classes); ``regularizer`` (adds a term
    to the loss, such as DistanceToPretrained; may be left out). With faces
    also ``face_sampler``, ``face_gate``, ``face_gate_from`` (first epoch of that
    gate if it is later than that of the loss; may be left out),
    ``face_centroid_start`` and
    ``selection`` (one of ``SELECTIONS``).

    ``compare_within`` weights classes by the channel groups of utterances.

    Arguments
    ---------
    labels : Labels
        Utterances and their classes.
    """

    stats_help = {
        **SpeakerBrain.stats_help,
        "gate_loss_log": (
            "Largest logarithm of the loss at which the gate selects a "
            "pseudo-label in the next epoch."
        ),
        "silent_classes": (
            "Share of the classes of which no utterance was learned."
        ),
        "unreadable_faces": (
            "Faces that cannot be read; save/unreadable_faces.csv lists them."
        ),
    }

    def __init__(self, labels: Labels, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.labels = labels
        parts = [("", self.hparams.view_sampler, self.hparams.gate)]
        if f"{FACE}encoder" in self.modules:
            gate = self.hparams.face_gate
            parts.append((FACE, self.hparams.face_sampler, gate))
        self.modalities = [self._modality(*part) for part in parts]
        self.decisions = self.modalities[0].decisions
        self.channels: torch.Tensor | None = None

    def compare_within(self, groups: np.ndarray, weight: float) -> None:
        """Compares an utterance mainly with the classes of its channel.

        A class without utterances in the channel group of an utterance counts
        ``weight`` times in its softmax, so that telling channels apart gains
        little. This is the product of the classifier with one that knows only
        the channel (C. Clark, M. Yatskar and L. Zettlemoyer, "Don't take the
        easy way out", EMNLP 2019), whose probabilities have two values. Groups
        are int64 [utterances], the weight is above 0, up to 1.
        """
        self.channels = torch.from_numpy(groups).to(self.device)
        self.in_channel = classes_of_channels(
            groups, self.labels.classes, self.labels.count
        ).to(self.device)
        self.outside = math.log(weight)

    def _modality(self, prefix, sampler, gate):
        """A modality, whose decisions are part of checkpoints."""
        decisions = Decisions(torch.from_numpy(self.labels.classes))
        if self.checkpointer is not None:
            name = f"{prefix}decisions"
            self.checkpointer.add_recoverable(name, decisions)
        path = os.path.join(self.hparams.output_folder, f"{prefix}gate.jsonl")
        return Modality(prefix, sampler, gate, decisions, EpochLog(path))

    @property
    def evaluated(self) -> Branch:
        """The branch that is verified and exported."""
        return self.module("encoder")

    @property
    def evaluated_face(self) -> Branch | None:
        """The branch of faces, if there is one."""
        name = f"{FACE}encoder"
        return self.module(name) if name in self.modules else None

    def all_stats_help(self) -> dict[str, str]:
        """Adds the statistics of the faces."""
        found = super().all_stats_help()
        if len(self.modalities) > 1:
            faces_help = {f"{FACE}{k}": f"Faces: {v}" for k, v in found.items()}
            found = {**faces_help, **found}
        return found

    def on_fit_start(self) -> None:
        """Moves the augmentation; starts class weights at centroids."""
        self.classes = self.decisions.labels.to(self.device)
        resumed = self.checkpointer and self.checkpointer.list_checkpoints()
        for modality in self.modalities:
            modality.sampler.to(self.device)
            asked = vars(self.hparams)[f"{modality.prefix}centroid_start"]
            if asked and not resumed:
                self._start_from_centroids(modality)
        super().on_fit_start()

    def _start_from_centroids(self, modality):
        """Sets class weights to the means of the classes' unit embeddings."""
        weight = self.module(f"{modality.prefix}classifier").weight
        speeds = modality.sampler.speeds
        means = torch.cat([self._means(modality, speed) for speed in speeds])
        subcenters = len(weight) // len(means)
        start = means.repeat_interleave(subcenters, 0)
        if subcenters > 1:  # equal ones would stay equal
            start = start + 0.1 * torch.randn_like(start) / len(start[0]) ** 0.5
        # a class without a face keeps its random weights
        empty = (means.norm(dim=-1) == 0).repeat_interleave(subcenters)
        with torch.no_grad():
            start[empty] = weight[empty].cpu()
            weight.copy_(distributed.from_first(start))

    def _means(self, modality, speed):
        """Unit means of the classes at a speed [classes, emb_dim]."""
        encoder = self.module(f"{modality.prefix}encoder").eval()
        sampler, rows = modality.sampler, None
        rate, utterances = sampler.sample_rate, self.labels.utterances

        def embed(wavs, lengths):
            if speed != 1:
                wavs = audio.resample(wavs, round(rate * speed), rate)
            return encoder.embed(wavs, lengths)

        if modality.prefix:
            rows = [
                row
                for row in range(len(utterances))
                if utterances.row(row)[faces.COLUMN]
            ]
        points = embed_utterances(
            embed,
            utterances,
            rate,
            device=self.device,
            rows=rows,
            face_size=sampler.face_size,
        )
        encoder.train()
        chosen = slice(None) if rows is None else rows
        with np.errstate(invalid="ignore"):  # classes without a face
            found, _ = centroids(points.numpy(), self.labels.classes[chosen])
        means = torch.zeros(self.labels.count, points.shape[1])
        means[: len(found)] = torch.from_numpy(found)
        return means

    def compute_forward(
        self, batch: PaddedBatch, stage: sb.Stage
    ) -> list[Prediction]:
        """Cosines of augmented and clean views, of voices and of faces if any."""
        batch = batch.to(self.device, non_blocking=True)
        return [self._predict(modality, batch) for modality in self.modalities]

    def _predict(self, modality, batch):
        """The prediction of a modality."""
        prefix, sampler = modality.prefix, modality.sampler
        views = getattr(batch, f"{prefix}views").data
        draws = getattr(batch, f"{prefix}draws").data
        crops, _ = sampler.split(sampler.augment(views, draws))
        present = torch.ones(len(views), dtype=torch.bool)
        if prefix:
            problems = dict(zip(batch.id, batch.face_problem))
            self.unreadable_faces.note(
                [{k: v} for k, v in problems.items() if v not in (None, "")]
            )
            present = torch.tensor([p is None for p in batch.face_problem])
        embed = self.modules[f"{prefix}encoder"]
        embedding = _embed(embed, crops[0], present)
        cosines = self.modules[f"{prefix}classifier"](embedding)
        clean = None
        if self.epoch >= self.hparams.loss.correct_from:
            clean = self._clean_cosines(prefix, crops[1], present)
        present, rows = (
            send(x, self.device) for x in (present, present.nonzero()[:, 0])
        )
        return Prediction(embedding, cosines, clean, present, rows)

    @torch.no_grad()
    def _clean_cosines(self, prefix, crop, present):
        """Cosines in evaluation mode: no dropout, no statistics of a batch."""
        encoder = self.this_process(f"{prefix}encoder").eval()
        embedding = _embed(encoder, crop, present)
        encoder.train()
        return self.module(f"{prefix}classifier")(embedding)

    def compute_objectives(
        self, predictions: list[Prediction], batch: PaddedBatch, stage: sb.Stage
    ) -> StepResult:
        """The gated loss, or the sum of those of voice and face.

        ``commit`` of the result keeps the decisions for the gates.
        """
        index, speed = (
            send(x, self.device) for x in (batch.index, batch.speed)
        )
        labels = self.classes[index]
        own_labels = [labels + self.labels.count * speed]
        if len(predictions) > 1:  # faces have no speed
            own_labels.append(labels)
        with torch.autocast(torch.device(self.device).type, enabled=False):
            offsets = [self._offsets(index), None]
            selected, together = self._together(
                predictions, own_labels, speed, offsets
            )
            total: Any = 0.0
            stats, decided = {}, []
            for n, (modality, prediction) in enumerate(
                zip(self.modalities, predictions)
            ):
                loss, decision, found = self.hparams.loss(
                    prediction.cosines,
                    own_labels[n],
                    prediction.clean_cosines,
                    selected[n],
                    self.epoch,
                    offsets=offsets[n],
                    **together[n],
                )
                total = total + loss
                decided.append(decision)
                stats.update(
                    {f"{modality.prefix}{k}": v for k, v in found.items()}
                )
            nothing = [
                stats[f"{modality.prefix}nothing_selected"]
                for modality in self.modalities
            ]
            teaches = torch.stack(nothing).min() == 0
            regularizer = getattr(self.hparams, "regularizer", None)
            if regularizer is not None:
                total, distance = regularizer(total)
                stats = {**stats, **distance}

        def commit():
            self.collapse.append(predictions[0].embedding)
            for prediction in predictions[1:]:
                seen = prediction.embedding[prediction.rows]
                self.face_collapse.append(seen)
            for modality, decision in zip(self.modalities, decided):
                # a class at any speed is one class of the file
                label = decision.label % self.labels.count
                modality.decisions.write(index, decision._replace(label=label))

        return StepResult(total, stats, teaches, commit)

    def _offsets(self, index):
        """Offsets of the logits of a batch; None without channel groups."""
        if self.channels is None:
            return None
        offsets = self.outside * ~self.in_channel[self.channels[index]]
        return offsets.repeat(1, len(self.hparams.view_sampler.speeds))

    def _together(self, predictions, labels, speed, offsets):
        """What both modalities decide: the selected rows of each, and what
        else its loss needs.
        """
        gates = [modality.gate for modality in self.modalities]
        if len(gates) == 1:
            return gates, [{}]
        loss, epoch = self.hparams.loss, self.epoch
        gated = [
            gate(loss.loss_logs(prediction.cosines, own, epoch, offset))
            for gate, prediction, own, offset in zip(
                gates, predictions, labels, offsets
            )
        ]
        gated[1] = gated[1] | (epoch < self._gate_from(FACE))
        present = [prediction.present for prediction in predictions]
        selected = modalities.select(gated, present, self.hparams.selection)
        posteriors = [None, None]
        if predictions[0].clean_cosines is not None:
            voice, face = (
                loss.predict(prediction.clean_cosines, epoch)[0]
                for prediction in predictions
            )
            voice = modalities.without_speeds(voice, self.labels.count)
            fused = modalities.fuse([voice, face], present)
            speeds = len(self.modalities[0].sampler.speeds)
            posteriors = [modalities.at_speed(fused, speed, speeds), fused]
        return selected, [
            {"posterior": posterior, "present": here}
            for posterior, here in zip(posteriors, present)
        ]

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Resets the decisions, unless an epoch is resumed."""
        super().on_stage_start(stage, epoch)
        if len(self.modalities) > 1:
            self.face_collapse = CollapseStats()
            folder = os.path.join(self.hparams.output_folder, "save")
            self.unreadable_faces = UnreadableUtterances(
                os.path.join(folder, "unreadable_faces.csv"),
                self.hparams.face_sampler.max_unreadable,
            )
        if self.step == 0:
            for modality in self.modalities:
                modality.decisions.clear()

    def describe_epoch(self, seconds: float) -> list[str]:
        """Fits the gates and writes their decisions."""
        warnings = super().describe_epoch(seconds)
        if len(self.modalities) > 1:
            summary = self.face_collapse.summarize()
            self.train_stats.update({FACE + k: v for k, v in summary.items()})
            warnings += [
                f"Faces: {text}"
                for text in self.face_collapse.warnings(summary)
            ]
            self.train_stats["unreadable_faces"] = self.unreadable_faces.finish(
                self.steps_per_epoch * self.utterances_per_step
            )
        for modality in self.modalities:
            warnings += self._fit_gate(modality)
        return warnings

    def _fit_gate(self, modality):
        """Fits a gate; returns the warning if its decision was refused."""
        prefix, decisions = modality.prefix, modality.decisions
        decisions.fetch()
        decision = modality.gate.fit(decisions.loss_logs())
        silent = decisions.silent_classes()
        self.train_stats[f"{prefix}silent_classes"] = silent / self.labels.count
        if math.isfinite(decision.threshold):
            self.train_stats[f"{prefix}gate_loss_log"] = decision.threshold
        epoch = self.hparams.epoch_counter.current
        if distributed.rank() == 0:
            self._write_decisions(modality, epoch, decision)
        gated = epoch >= self._gate_from(prefix)
        if gated and not decision.accepted:
            name = "Gate of faces" if prefix else "Gate"
            return [f"{name}: {decision.reason}"]
        return []

    def _gate_from(self, prefix):
        """First epoch of the gate of a modality."""
        own = vars(self.hparams).get(f"{prefix}gate_from", 0.0)
        return max(self.hparams.loss.gate_from, own)

    def _write_decisions(self, modality, epoch, decision):
        """Writes the gate of this epoch and all decisions, for reports."""
        folder = self.hparams.output_folder
        threshold, decisions = decision.threshold, modality.decisions
        record = {
            "epoch": epoch,
            **decision._asdict(),
            # JSON has no infinity: null is no gate
            "threshold": threshold if math.isfinite(threshold) else None,
            "histogram": decisions.histogram(),
            **decisions.shares(),
        }
        modality.gate_log.write(record)
        path = os.path.join(folder, f"{modality.prefix}decisions.csv")
        with writing(path):
            decisions.write_csv(path, self.labels.utterances.ids())


def _embed(encoder, crop, present):
    """Embeds the rows of a batch that there are; zeros for the others.

    Blank images would change the statistics of BatchNorm, so they are left
    out; two rows are always there, as BatchNorm and DDP need them.
    """
    if present.all():
        return encoder([crop]).embedding[0]
    kept = present.clone()
    if kept.sum() < 2:
        kept[:2] = True
    rows = send(kept.nonzero()[:, 0], crop.device)
    found = encoder([crop[rows]]).embedding[0]
    blank = found.new_zeros(len(crop), found.shape[1])
    return blank.index_copy(0, rows, found)
