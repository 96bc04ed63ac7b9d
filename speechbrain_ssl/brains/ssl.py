"""Stage one: an objective over views."""

import time
from typing import Any

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_ssl import distributed
from speechbrain_ssl.brains.base import SpeakerBrain, StepResult
from speechbrain_ssl.dataio.annotations import UtteranceDataset
from speechbrain_ssl.devices import send
from speechbrain_ssl.nnet.branch import Branch, BranchOutput
from speechbrain_ssl.nnet.face import ClipBranch
from speechbrain_ssl.pseudo_labels.extract import embed_utterances


class SSLBrain(SpeakerBrain):
    """Trains a student, with or without a teacher, on an objective.

    Modules: ``student`` (a Branch, or a ClipBranch of voices and faces),
    ``objective`` and, where the method has one, ``teacher`` (an EMATeacher).

    Hyperparameters beside those of SpeakerBrain: ``view_sampler``;
    ``student_sees_global`` (False for methods whose student gets the local
    crops only); ``extract_from`` (``student`` or ``teacher``: which of them
    is verified and exported); ``cluster_tables`` (list of ClusterTables,
    refreshed from the embeddings of that branch).

    An objective may have ``warnings(stats)``: mean statistics of an epoch to
    sentences for the log.
    """

    stats_help = {
        **SpeakerBrain.stats_help,
        "teacher_agreement": (
            "Mean cosine of the embeddings of student and teacher of the same "
            "view; healthy only while the embeddings stay spread."
        ),
        "view_agreement": (
            "Mean cosine of the embeddings of two views of an utterance; "
            "healthy only while the embeddings stay spread."
        ),
    }

    def make_dataloader(
        self, dataset: UtteranceDataset, stage: sb.Stage, **kwargs: Any
    ) -> Any:
        """Makes the loader and keeps the utterances."""
        self.utterances = dataset.utterances
        self.utterances_hash = self.utterances.hash()
        return super().make_dataloader(dataset, stage, **kwargs)

    def on_fit_start(self) -> None:
        """Copies the student's weights, maybe pretrained, to the teacher."""
        if "teacher" in self.modules:
            self.module("teacher").reset(self.module("student"))
        self.hparams.view_sampler.to(self.device)
        for table in self.hparams.cluster_tables:
            table.prepare(len(self.utterances))
        super().on_fit_start()

    def compute_forward(
        self, batch: PaddedBatch, stage: sb.Stage
    ) -> tuple[BranchOutput, BranchOutput | None]:
        """Runs student and teacher on the augmented views of a batch.

        The student has all crops, or the local ones; the teacher the global
        ones, or None.
        """
        batch = batch.to(self.device, non_blocking=True)
        sampler = self.hparams.view_sampler
        wavs = sampler.augment(batch.views.data, batch.draws.data)
        global_crops, local_crops = sampler.split(wavs)
        seen = local_crops
        if self.hparams.student_sees_global:
            seen = global_crops + local_crops
        # one call: DDP and BatchNorm expect one forward pass per step
        student = self.modules.student(seen)
        teacher = None
        if "teacher" in self.modules:
            teacher = self.modules.teacher(global_crops)
        index = send(batch.index, self.device)
        view_id = tuple(range(len(global_crops + local_crops)))
        return (
            student._replace(index=index, view_id=view_id[-len(seen) :]),
            teacher
            and teacher._replace(
                index=index, view_id=view_id[: len(global_crops)]
            ),
        )

    def compute_objectives(
        self,
        predictions: tuple[BranchOutput, BranchOutput | None],
        batch: PaddedBatch,
        stage: sb.Stage,
    ) -> StepResult:
        """The objective's loss, with its statistics and agreement of views."""
        student, teacher = predictions
        # half precision of cosines is too little for small temperatures
        with torch.autocast(torch.device(self.device).type, enabled=False):
            loss, stats = self.modules.objective(student, teacher, self.epoch)

        def commit():
            self.collapse.append(student.embedding)
            objective = self.module("objective")
            if hasattr(objective, "commit"):
                objective.commit(student, teacher)

        stats = {**stats, **self._agreement(student, teacher)}
        return StepResult(loss, stats, True, commit)

    @torch.no_grad()
    def _agreement(self, student, teacher):
        """Mean cosine of embeddings of different views or branches."""
        mine = student.embedding.float()
        if teacher is not None and self.hparams.student_sees_global:
            theirs = teacher.embedding.float()
            cosine = F.cosine_similarity(mine[: len(theirs)], theirs, dim=-1)
            return {"teacher_agreement": cosine.mean()}
        if len(mine) > 1:
            cosine = F.cosine_similarity(mine[:1], mine[1:], dim=-1)
            return {"view_agreement": cosine.mean()}
        return {}

    def on_fit_batch_end(
        self,
        batch: PaddedBatch,
        outputs: Any,
        loss: torch.Tensor,
        should_step: bool,
    ) -> None:
        """Moves the teacher after each optimizer step."""
        if should_step and "teacher" in self.modules:
            self.module("teacher").update(
                self.module("student"), self.epoch, self.moved
            )

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Resets the statistics, and refreshes cluster tables if it is time."""
        super().on_stage_start(stage, epoch)
        self.cluster_stats = {}
        done = (epoch or 0) - 1
        due = [t for t in self.hparams.cluster_tables if t.due(done)]
        if due:
            self._cluster(due, done)

    def _cluster(self, tables, epoch):
        """Refreshes tables from embeddings of all clean utterances."""
        branch = self.evaluated
        was_training = branch.training
        branch.eval()
        # running statistics of a teacher differ between processes
        for buffer in branch.buffers():
            buffer.copy_(distributed.from_first(buffer))
        embeddings = embed_utterances(
            branch.embed,
            self.utterances,
            self.hparams.view_sampler.sample_rate,
            device=self.device,
            face_size=self.hparams.view_sampler.face_size,
        )
        branch.train(was_training)
        for table in tables:
            report = table.refresh(embeddings, epoch)
            # their views were cut from the clusters of before
            self.train_loader.forget()
            self.cluster_stats.update(self._numbered(table, report))
        # this is training time, but no waiting for data
        now = time.monotonic()
        self.training_seconds += now - self.clock
        self.clock = now

    def _numbered(self, table, report):
        """Statistics of a table by their names in the log.

        They begin with ``cluster``, or with ``cluster_1``, ``cluster_2``, ...
        if there are several tables.
        """
        tables = self.hparams.cluster_tables
        if len(tables) == 1:
            return report
        prefix = f"cluster_{tables.index(table) + 1}"
        return {k.replace("cluster", prefix, 1): v for k, v in report.items()}

    def all_stats_help(self) -> dict[str, str]:
        """Adds the statistics of the cluster tables."""
        found = super().all_stats_help()
        for table in self.hparams.cluster_tables:
            found.update(self._numbered(table, table.stats_help))
        return found

    def describe_epoch(self, seconds: float) -> list[str]:
        """Adds statistics of clusters and warnings of the objective."""
        warnings = super().describe_epoch(seconds)
        self.train_stats.update(self.cluster_stats)
        ask = getattr(self.module("objective"), "warnings", None)
        # not of an epoch in which no loss was finite
        if ask is None or "loss" not in self.train_stats:
            return warnings
        return warnings + ask(self.train_stats)

    @property
    def evaluated(self) -> Branch:
        """The branch that is verified and exported; of clips that of voices."""
        network = self._extracted()
        return network.voice if isinstance(network, ClipBranch) else network

    @property
    def evaluated_face(self) -> Branch | None:
        """The branch of the faces of clips."""
        network = self._extracted()
        return network.face if isinstance(network, ClipBranch) else None

    def _extracted(self):
        """The network of ``extract_from``."""
        if self.hparams.extract_from == "teacher":
            return self.module("teacher").network
        return self.module("student")
