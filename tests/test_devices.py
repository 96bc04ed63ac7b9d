"""Everything runs on a GPU, pretended where there is none."""

import contextlib
import copy
import functools

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.nnet.containers import LengthsCapableSequential
from speechbrain.processing.features import InputNormalization

from speechbrain_ssl.brains.pseudo_label import PseudoLabelBrain
from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.cli.embed import embed
from speechbrain_ssl.cli.score import verify
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterPartners, ClusterTable
from speechbrain_ssl.dataio.augmentation import (
    Augmentation,
    Channel,
    Gain,
    Noise,
    Reverberation,
)
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.devices import Later, send, share
from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import continue_run, load_encoder
from speechbrain_ssl.nnet.branch import Branch, BranchOutput
from speechbrain_ssl.nnet.mhfa import MHFA
from speechbrain_ssl.nnet.regularizers import DistanceToPretrained
from speechbrain_ssl.nnet.transformer import PretrainedTransformer
from speechbrain_ssl.objectives.deep_cluster import DeepCluster
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.ssps import SSPS
from speechbrain_ssl.objectives.weighted import Weighted
from speechbrain_ssl.pseudo_labels.channels import channel_groups
from speechbrain_ssl.pseudo_labels.gating import MixtureGate
from speechbrain_ssl.pseudo_labels.loss import AAMSoftmax, GatedLoss
from tests import models
from tests.brains import test_base, tiny
from tests.brains import test_pseudo_label as stage_two
from tests.nnet import tiny_transformer
from tests.objectives import examples
from tests.pretend_device import CUDA, WAITS, pretended_cuda, refused


@pytest.fixture
def cuda():
    with pretended_cuda():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve noises, a list of trials and an exported encoder."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny.write_corpus(folder)
    (folder / "trials.txt").write_text(
        "1 00.wav 01.wav\n0 00.wav 02.wav\n1 03.wav 04.wav\n0 03.wav 05.wav\n"
    )
    models.export_model(folder / "model")
    return folder


PLANTED = {
    "an index on the GPU of a table on the CPU": lambda x, y: x[y.long()],
    "a gather by an index on the CPU": lambda x, y: y.gather(0, x.long()),
    "a concatenation": lambda x, y: torch.cat([x, y]),
    "a stack of scalars": lambda x, y: torch.stack([x.sum(), y.sum()]),
    "a sum": lambda x, y: x + y,
    "a sum in place of a scalar": lambda x, y: x.sum().add_(y.sum()),
    "a product in place": lambda x, y: x.mul_(y),
    "a matrix product": lambda x, y: x[None] @ y[:, None],
    "a selection by a mask": lambda x, y: x[y > 0],
    "values that are written": lambda x, y: y.index_put_(
        (torch.tensor([0, 1]),), x
    ),
    "a filter of a convolution": lambda x, y: torch.conv1d(
        y[None, None], x[None, None]
    ),
    "a module that stayed behind": lambda x, y: torch.nn.Linear(2, 2)(y),
    "running statistics that stayed behind": lambda x, y: (
        torch.nn.functional.batch_norm(y[:, None], x[:1], x[:1] + 1)
    ),
    "a buffer that is averaged": lambda x, y: x.lerp_(y, 0.5),
    "a gradient of another device": lambda x, y: (
        y.clone().requires_grad_().sin().backward(x)
    ),
    "a step of a list of tensors": lambda x, y: torch._foreach_add_(
        [y, y], [x, x]
    ),
    "a tensor that becomes an array": lambda x, y: y.numpy(),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name, cuda):
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    with pytest.raises((RuntimeError, TypeError), match="cuda:0"):
        PLANTED[name](here, there)


def test_what_torch_allows_passes(cuda):
    here, there = torch.arange(2), torch.ones(2, device="cuda")
    assert (there * torch.tensor(2.0)).device == CUDA
    assert there[here].device == CUDA
    assert there.copy_(here).device == CUDA
    assert here.to(there).device == there.device
    assert there.cpu().device == here.device
    there[here] = torch.tensor(0.0)
    net = torch.nn.Linear(2, 2).cuda()
    net(there).sum().backward()
    assert net.weight.grad.device == copy.deepcopy(net).bias.device == CUDA


# what makes the host wait for the device
WAITING = {
    "a value": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x.sum() > 0),
    "all values": lambda x: x.tolist(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy in place to the host": lambda x: torch.ones(2).copy_(x),
    "a copy from the host": lambda x: torch.ones(2).to("cuda"),
    "values of the host": lambda x: torch.tensor([1.0], device="cuda"),
    "numbers of rows from the host": lambda x: x[[0, 1]],
    "a selection by a mask": lambda x: x[x > 0],
    "values that are written by a mask": lambda x: x.__setitem__(x > 2, 1.0),
    "rows that are not zero": lambda x: x.nonzero(),
    "one argument of where": lambda x: torch.where(x > 0),
    "a comparison": lambda x: torch.equal(x, x),
    "a decomposition that is checked": lambda x: torch.linalg.cholesky(
        torch.eye(2, device="cuda")
    ),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_wait_for_the_device_is_found(name, cuda):
    WAITING[name](torch.ones(2, device="cuda"))
    assert len(WAITS) == 1 and "test_devices.py" in WAITS[0]


def test_what_waits_for_nothing_passes(cuda):
    x = send(torch.ones(2), "cuda")
    rows = torch.arange(2, device="cuda")
    x[rows] = torch.where(x > 0, x[rows], 2.0) * torch.full_like(x, 3.0)
    x.mul_(0.5).index_add_(0, rows, x.clamp(min=1.0).sqrt())
    assert Later(x).read().gt(2).all()
    torch.linalg.cholesky_ex(torch.eye(2, device="cuda"))
    assert not WAITS


@pytest.mark.parametrize("name", examples.all_examples())
def test_objectives(name, cuda):
    objective = examples.all_examples()[name]().to("cuda")
    size = examples.VIEWS, examples.BATCH, examples.DIM
    points = torch.randn(size, device="cuda", requires_grad=True)
    index = torch.arange(examples.BATCH, device="cuda")
    views = BranchOutput(points, points, index)
    teacher = BranchOutput(points.detach()[:2], points.detach()[:2], index)
    for _ in range(3):  # a queue is full, and what is kept was sent
        WAITS.clear()
        loss, stats = objective(views, teacher, 0.5)
        loss.backward()
        with torch.no_grad():
            getattr(objective, "commit", lambda *_: None)(views, teacher)
    assert {x.device for x in (loss, points.grad, *stats.values())} == {CUDA}
    assert not WAITS


def augmentation():
    """One of each effect, all applied to each view."""
    effects = {
        "rir": Reverberation(simulated=3),
        "noise": Noise(),
        "channel": Channel(),
        "gain": Gain(),
    }
    return Augmentation(effects, seed=3)


def cluster_aware(augment_on):
    """Stage one with all that reads clusters."""
    table = ClusterTable(KMeans(), clusters=3)
    sampler = ViewSampler(
        16000,
        2,
        0.1,
        augmentation=augmentation(),
        augment_on=augment_on,
        partners=ClusterPartners(table),
        speeds=[0.9, 1.0, 1.1],
        seed=3,
    )
    moco = SSPS(MoCo(tiny.DIM, queue_size=20), table, tiny.DIM, 30, 0)
    clusters = DeepCluster([table], concentrations=True)
    return {
        "objective": Weighted([moco, clusters], [1.0, 1.0]),
        "cluster_tables": [table],
        "view_sampler": sampler,
        "encoder": tiny.ecapa,
    }


class Cut:
    """Stops in the second epoch."""

    stop_at = 3


class Counting:
    """Counts what waits for the device from the end of a step to the next."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.waited = []

    def fit_batch(self, batch):
        if self.step > 1:  # the first one sends what is sent once
            self.waited += WAITS
        with refused() if self.step > 1 else contextlib.nullcontext():
            loss = super().fit_batch(batch)
        if self.step > 1:
            self.waited += WAITS
        WAITS.clear()
        return loss


def resume(run, first, second, cut):
    """Interrupts a run inside its second epoch and goes on with it."""
    with pytest.raises(test_base.Interrupted):
        run(**first, brain_class=cut, ckpt_interval_steps=1)
    return run(**second)


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_stage_one(corpus, tmp_path, cuda, augment_on):
    run = functools.partial(
        tiny.run,
        corpus,
        tmp_path,
        device="cuda:0",
        batch_size=6,
        dev_trials=str(corpus / "trials.txt"),
    )
    settings = cluster_aware(augment_on), cluster_aware(augment_on)
    brain = resume(run, *settings, type("", (Cut, test_base.Watching), {}))
    assert brain.optimizer_step == 4
    assert {x.device for x in tiny.state_of(brain).values()} == {CUDA}
    last = tiny.records(tmp_path)[-1]
    assert last["train"]["ssps_replaced"] > 0 and "EER" in last["valid"]
    assert not tiny.unexplained(tmp_path)


class Noticed(Branch):
    """The features of the recipes, with their normalisation."""

    def __init__(self):
        norm = InputNormalization(norm_type="sentence", std_norm=False)
        encoder = ECAPA_TDNN(24, channels=[8] * 4 + [24], lin_neurons=tiny.DIM)
        super().__init__(Fbank(n_mels=24), norm, encoder)


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_a_step_of_stage_one_does_not_wait(
    corpus, tmp_path, cuda, augment_on, monkeypatch
):
    monkeypatch.setattr(tiny, "Branch", lambda *parts: Noticed())
    settings = cluster_aware(augment_on)
    brain = tiny.run(
        corpus,
        tmp_path,
        device="cuda:0",
        batch_size=4,
        epochs=2,
        brain_class=type("", (Counting, SSLBrain), {}),
        **settings,
    )
    assert brain.optimizer_step == 6
    assert not brain.waited


def test_a_step_of_stage_two_does_not_wait(corpus, tmp_path, cuda):
    brain = stage_two.run(
        corpus,
        tmp_path,
        device="cuda:0",
        batch_size=4,
        brain_class=type("", (Counting, PseudoLabelBrain), {}),
        **stage_two_settings(Noticed()),
    )
    assert brain.optimizer_step == 6
    assert not brain.waited


SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ADAMW = functools.partial(torch.optim.AdamW, lr=0.01)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("opt_class", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("lost", ["loss", "gradients"])
def test_a_step_that_is_not_finite_changes_nothing(
    corpus, tmp_path, cuda, lost, opt_class, first
):
    """The device itself skips the step; the host learns of it in the next."""

    class Spoils(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.objective, self.calls = MoCo(tiny.DIM, queue_size=20), 0
            self.commit = self.objective.commit

        def forward(self, student, teacher, epoch):
            self.calls += 1
            loss, stats = self.objective(student, teacher, epoch)
            if self.calls == first and lost == "loss":
                loss = loss * float("nan")
            if self.calls == first and lost == "gradients":
                loss = loss + (0 * student.embedding).sqrt().sum()
            return loss, stats

    class Keeping(Counting, SSLBrain):
        def fit_batch(self, batch):
            loss = super().fit_batch(batch)
            self.note_state()
            return loss

        def on_fit_start(self):
            super().on_fit_start()
            self.note_state()

        def note_state(self):
            kept = self.optimizer.state.values()
            parts = [x for state in kept for x in state.values()]
            parts += self.modules.student.parameters()
            parts += self.modules.teacher.parameters()
            # an optimizer makes moments that are zero when it is first asked
            parts = [x.detach().clone() for x in parts if x.any()]
            self.states.append(parts)

        states = []

    brain = tiny.run(
        corpus,
        tmp_path,
        device="cuda:0",
        epochs=1,
        objective=Spoils(),
        brain_class=Keeping,
        opt_class=opt_class,
    )
    before, after, later = (
        [x.tolist() for x in Keeping.states[n]]
        for n in range(first - 1, first + 2)
    )
    assert before == after != later
    assert brain.optimizer_step == 3
    assert brain.train_stats["gradient_norm"] > 0


def stage_two_settings(encoder):
    """Stage two with a gate, correction, centroids and a regulariser."""
    speeds = [0.5, 1.0, 2.0]
    aam = AAMSoftmax(subcenters=2)
    loss = GatedLoss(aam, correct_from=1.0, threshold=0.0)
    return {
        "encoder": encoder,
        "loss": loss,
        "subcenters": 2,
        "gate": MixtureGate(),
        "view_sampler": ViewSampler(
            16000,
            1,
            0.1,
            clean_views=True,
            speeds=speeds,
            augmentation=augmentation(),
            augment_on="device",
            seed=3,
        ),
        "regularizer": DistanceToPretrained(encoder, self_normalized=True),
        "centroid_start": True,
    }


def ecapa():
    """An encoder that learns, for stage two."""
    return Branch(tiny.Frames(), tiny.AsTheyAre(), tiny.ecapa())


def transformer(source):
    """A pretrained transformer and its pooling."""
    layers = PretrainedTransformer(source)
    sizes = tiny_transformer.LAYERS + 1, tiny_transformer.WIDTH
    pooling = MHFA(*sizes, heads=4, compression=8, emb_dim=tiny.DIM)
    none = LengthsCapableSequential(none=torch.nn.Identity())
    return Branch(
        torch.nn.Identity(),
        none,
        LengthsCapableSequential(wavlm=layers, pooling=pooling),
    )


def test_stage_two(corpus, tmp_path, cuda):
    run = functools.partial(
        stage_two.run, corpus, tmp_path, device="cuda:0", batch_size=6
    )
    settings = stage_two_settings(ecapa()), stage_two_settings(ecapa())
    brain = resume(run, *settings, type("", (Cut, stage_two.Watching), {}))
    assert brain.optimizer_step == 4
    assert {x.device for x in tiny.state_of(brain).values()} == {CUDA}
    # of clean views, in the epoch that may correct labels
    assert tiny.records(tmp_path)[-1]["train"]["confidence"] > 0
    assert not tiny.unexplained(tmp_path)


def test_channel_groups_in_stage_two(corpus, tmp_path, cuda):
    class Within(PseudoLabelBrain):
        def on_fit_start(self):
            path, rows = f"{tmp_path}/groups.npz", self.labels.utterances
            groups = channel_groups(rows, path, 16000, 2, 0, self.device)
            self.compare_within(groups, 0.1)
            super().on_fit_start()

    brain = stage_two.run(
        corpus,
        tmp_path,
        device="cuda:0",
        batch_size=6,
        brain_class=Within,
        **stage_two_settings(ecapa()),
    )
    assert brain.optimizer_step == 4
    assert brain.in_channel.device == brain.channels.device == CUDA


def test_large_margins_on_a_transformer(corpus, tmp_path, cuda):
    source = tiny_transformer.write(tmp_path / "wavlm")
    run = functools.partial(
        stage_two.run, corpus, device="cuda:0", batch_size=6, epochs=1
    )
    run(tmp_path / "before", **stage_two_settings(transformer(source)))

    class Margin(PseudoLabelBrain):
        def on_fit_start(self):
            encoder, classifier = map(self.module, ("encoder", "classifier"))
            continue_run(encoder, classifier, str(tmp_path / "before"))
            super().on_fit_start()

    settings = stage_two_settings(transformer(source))
    settings["loss"] = GatedLoss(AAMSoftmax(margin=0.5, subcenters=2))
    settings["centroid_start"] = False
    brain = run(tmp_path / "after", brain_class=Margin, **settings)
    assert brain.optimizer_step == 2


def test_a_trained_encoder_is_exported_and_used(corpus, tmp_path, cuda):
    model = str(corpus / "model")
    encoder = load_encoder(model, "cuda:0")
    branch = Branch(
        *map(
            encoder.mods.__getitem__,
            ("compute_features", "mean_var_norm", "embedding_model"),
        )
    )
    text = f"sample_rate: 16000\n{models.ENCODER}"
    exported = export(branch, text, str(tmp_path / "model"))
    paths = [str(corpus / name) for name in ("00.wav", "01.wav")]
    verdict = verify(exported, *paths, device="cuda:0")
    found = embed(
        exported, str(corpus), str(tmp_path / "embeddings"), device="cuda:0"
    )
    assert -1 <= verdict.score <= 1 and len(found.matrix) == 12


def test_shared_memory_that_is_too_small_is_named(monkeypatch):
    def share_memory_(tensor):
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    message = "Noise needs 4 MiB of .*/dev/shm.*unable to allocate.*--shm-size"
    with pytest.raises(OSError, match=message):
        share(torch.zeros(2**20), "Noise")
