"""Stage two: classification of pseudo-labels that a gate selects."""

import math
import os
from typing import Any

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
from speechbrain_ssl.clustering.quality import centroids
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.pseudo_labels.decisions import Decisions
from speechbrain_ssl.pseudo_labels.extract import embed_utterances
from speechbrain_ssl.pseudo_labels.labels import Labels


class PseudoLabelBrain(SpeakerBrain):
    """Trains an encoder on the classes of a label file.

    Modules: ``encoder`` (a Branch without head) and ``classifier``, with as
    many classes as the labels for each speed of the view sampler: with speed
    perturbation, a class at another speed is a class of its own (H. Yamamoto
    et al., Interspeech 2019).

    Hyperparameters beside those of SpeakerBrain: ``view_sampler`` (of one
    global crop, with its clean view where labels are corrected); ``loss`` (a
    GatedLoss); ``gate``, fitted at the end of each epoch to the logarithms of
    the losses of all utterances; ``centroid_start`` (whether class weights
    start at the mean embeddings of the classes); ``regularizer`` (adds a term
    to the loss, such as DistanceToPretrained; may be left out).

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
    }

    def __init__(self, labels: Labels, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.labels = labels
        self.decisions = Decisions(torch.from_numpy(labels.classes))
        self.gate_log = EpochLog(
            os.path.join(self.hparams.output_folder, "gate.jsonl")
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("decisions", self.decisions)

    @property
    def evaluated(self) -> Branch:
        """The branch that is verified and exported."""
        return self.module("encoder")

    def on_fit_start(self) -> None:
        """Moves the augmentation; starts class weights at centroids."""
        self.sampler = self.hparams.view_sampler
        self.sampler.to(self.device)
        resumed = self.checkpointer and self.checkpointer.list_checkpoints()
        if self.hparams.centroid_start and not resumed:
            self._start_from_centroids()
        super().on_fit_start()

    def _start_from_centroids(self):
        """Sets class weights to the means of the classes' unit embeddings."""
        weight = self.module("classifier").weight
        means = torch.cat([self._means(s) for s in self.sampler.speeds])
        subcenters = len(weight) // len(means)
        start = means.repeat_interleave(subcenters, 0)
        if subcenters > 1:  # equal ones would stay equal
            start = start + 0.1 * torch.randn_like(start) / len(start[0]) ** 0.5
        with torch.no_grad():
            weight.copy_(distributed.from_first(start))

    def _means(self, speed):
        """Unit means of the classes at a speed [classes, emb_dim]."""
        encoder, rate = self.evaluated.eval(), self.sampler.sample_rate

        def embed(wavs, lengths):
            played = audio.resample(wavs, round(rate * speed), rate)
            return encoder.embed(played, lengths)

        points = embed_utterances(
            embed, self.labels.utterances, rate, device=self.device
        )
        encoder.train()
        means, _ = centroids(points.numpy(), self.labels.classes)
        return torch.from_numpy(means)

    def compute_forward(
        self, batch: PaddedBatch, stage: sb.Stage
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Computes the cosines of augmented and of clean views.

        Arguments
        ---------
        batch : PaddedBatch
            With ``views``, ``draws`` and ``index``.
        stage : sb.Stage
            Always TRAIN.

        Returns
        -------
        embedding : torch.Tensor
            Of the augmented crop [batch, emb_dim].
        cosines, clean_cosines : torch.Tensor
            Cosines of it and of its clean view to all class weights [batch,
            weights]; the latter None before labels are corrected.
        """
        batch = batch.to(self.device)
        wavs = self.sampler.augment(batch.views.data, batch.draws.data)
        crops, _ = self.sampler.split(wavs)
        embedding = self.modules.encoder(crops[:1]).embedding[0]
        cosines = self.modules.classifier(embedding)
        if self.epoch < self.hparams.loss.correct_from:
            return embedding, cosines, None
        return embedding, cosines, self._clean_cosines(crops[1])

    @torch.no_grad()
    def _clean_cosines(self, crop):
        """Cosines in evaluation mode: no dropout, no statistics of a batch."""
        encoder = self.this_process("encoder").eval()
        embedding = encoder([crop]).embedding[0]
        encoder.train()
        return self.module("classifier")(embedding)

    def compute_objectives(
        self,
        predictions: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        batch: PaddedBatch,
        stage: sb.Stage,
    ) -> StepResult:
        """The gated loss.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            Embeddings, cosines and clean cosines.
        batch : PaddedBatch
            With ``index`` and ``speed``.
        stage : sb.Stage
            Always TRAIN.

        Returns
        -------
        StepResult
            Its ``commit`` keeps the decisions for the gate.
        """
        embedding, cosines, clean_cosines = predictions
        index = torch.as_tensor(batch.index, device=self.device)
        speed = torch.as_tensor(batch.speed, device=self.device)
        # the labels of all utterances stay on the CPU
        labels = self.decisions.labels[index.cpu()].to(self.device)
        labels = labels + self.labels.count * speed
        with torch.autocast(torch.device(self.device).type, enabled=False):
            loss, decided, stats = self.hparams.loss(
                cosines, labels, clean_cosines, self.hparams.gate, self.epoch
            )
            regularizer = getattr(self.hparams, "regularizer", None)
            if regularizer is not None:
                loss, distance = regularizer(loss)
                stats = {**stats, **distance}

        def commit():
            self.collapse.append(embedding)
            # a class at any speed is one class of the file
            label = decided.label % self.labels.count
            self.decisions.write(index, decided._replace(label=label))

        teaches = not bool(stats["nothing_selected"])
        return StepResult(loss, stats, teaches, commit)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Resets the decisions, unless an epoch is resumed."""
        super().on_stage_start(stage, epoch)
        if self.step == 0:
            self.decisions.clear()

    def describe_epoch(self, seconds: float) -> list[str]:
        """Fits the gate and writes its decision."""
        warnings = super().describe_epoch(seconds)
        decision = self.hparams.gate.fit(self.decisions.loss_logs())
        silent = self.decisions.silent_classes()
        self.train_stats["silent_classes"] = silent / self.labels.count
        if math.isfinite(decision.threshold):
            self.train_stats["gate_loss_log"] = decision.threshold
        epoch = self.hparams.epoch_counter.current
        gated = epoch >= self.hparams.loss.gate_from
        if gated and not decision.accepted:
            warnings.append(f"Gate: {decision.reason}")
        if distributed.rank() == 0:
            self._write_decisions(epoch, decision)
        return warnings

    def _write_decisions(self, epoch, decision):
        """Writes the gate of this epoch and all decisions, for reports."""
        folder = self.hparams.output_folder
        threshold = decision.threshold
        record = {
            "epoch": epoch,
            **decision._asdict(),
            # JSON has no infinity: null is no gate
            "threshold": threshold if math.isfinite(threshold) else None,
            "histogram": self.decisions.histogram(),
            **self.decisions.shares(),
        }
        self.gate_log.write(record)
        path = os.path.join(folder, "decisions.csv")
        with writing(path):
            self.decisions.write_csv(path, self.labels.utterances.ids())
