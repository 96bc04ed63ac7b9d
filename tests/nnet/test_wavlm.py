"""WavLM: what learns, what stays, and in which mode."""

import pytest
import torch
from speechbrain.integrations.huggingface.wavlm import WavLM as Wrapper
from speechbrain.nnet.containers import LengthsCapableSequential

from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.mhfa import MHFA
from speechbrain_ssl.nnet.parameters import layerwise_rates
from speechbrain_ssl.nnet.regularizers import DistanceToPretrained
from speechbrain_ssl.nnet.wavlm import WavLM
from tests.brains import tiny
from tests.brains.conftest import corpus  # noqa: F401
from tests.brains.test_pseudo_label import make_brain
from tests.nnet import tiny_wavlm


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_wavlm.write(tmp_path_factory.mktemp("a wavlm"))


def wavs(count=2, seconds=0.2):
    return 0.1 * torch.randn(count, round(16000 * seconds))


def test_hidden_states_are_those_of_speechbrains_wrapper(source):
    wrapper = Wrapper(source, source, output_all_hiddens=True).eval()
    wav, lengths = wavs(), torch.tensor([1.0, 0.7])
    found = WavLM(source).eval()(wav, lengths)
    assert found.shape[0] == tiny_wavlm.LAYERS + 1
    assert found.shape[-1] == tiny_wavlm.WIDTH
    torch.testing.assert_close(found, wrapper(wav, lengths))


def test_no_layer_is_left_out_in_training(source):
    net = WavLM(source).train()
    for _ in range(5):
        assert len(net(wavs())) == tiny_wavlm.LAYERS + 1


def test_named_parts_learn_and_nothing_else(source):
    net = WavLM(source, trained=["encoder.layers.1", "encoder.layer_norm"])
    model = net.wavlm.model
    found = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rsplit(".", 1)[0] for n in found if "layer_norm" in n} >= {
        "encoder.layer_norm"
    }
    assert found == {
        n
        for n, _ in model.named_parameters()
        if n.startswith(("encoder.layers.1.", "encoder.layer_norm."))
    }


def test_what_does_not_learn_only_evaluates(source):
    net = WavLM(source)
    for mode in (True, False, True):
        net.train(mode)
        model = net.wavlm.model
        assert model.encoder.layers[1].dropout.training is mode
        for part in (
            model,
            model.feature_extractor,
            model.feature_projection.dropout,
            model.encoder.dropout,
        ):
            assert not part.training


def test_frozen_front_end_keeps_no_graph(source):
    net = WavLM(source).train()
    with torch.enable_grad():
        front = net.wavlm.model.feature_extractor(wavs())
    assert not front.requires_grad


def test_gradient_checkpointing_changes_no_gradient(source):
    nets = [
        WavLM(source, gradient_checkpointing=on, trained=["encoder.layers"])
        for on in (False, True)
    ]
    wav, gradients = wavs(), []
    for net in nets:
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for name in ("attention_dropout", "hidden_dropout"):
            setattr(net.wavlm.model.config, name, 0.0)
        for layer in net.layers:
            layer.attention.dropout = 0.0
        net.train()(wav).square().mean().backward()
        gradients.append(
            {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
        )
    assert nets[1].layers[0].gradient_checkpointing
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_layers_are_nearly_as_exact_in_half_precision(source):
    net = WavLM(source).eval()
    frames = torch.randn(2, 9, tiny_wavlm.WIDTH)
    with torch.no_grad():
        exact = net.wavlm.model.encoder(frames).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        low = net.wavlm.model.encoder(frames).last_hidden_state
        net(wavs(), torch.tensor([1.0, 0.7])).float().square().sum().backward()
    assert (low.float() - exact).norm() < 0.05 * exact.norm()
    for parameter in net.layers.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_an_architecture_is_made_again_without_files(tmp_path, normalize):
    net = WavLM(tiny_wavlm.write(tmp_path / "wavlm", normalize)).eval()
    again = WavLM(**net.architecture()).eval()
    again.load_state_dict(net.state_dict())
    wav = 3 + wavs()
    torch.testing.assert_close(again(wav), net(wav))
    assert again.architecture() == net.architecture()


def test_source_or_config_must_be_given(source):
    with pytest.raises(ValueError, match="one of them"):
        WavLM()
    with pytest.raises(ValueError, match="one of them"):
        WavLM(source, config={})


def test_a_part_that_is_not_there_is_named(source):
    with pytest.raises(ValueError, match="no part 'decoder'.*encoder"):
        WavLM(source, trained=["decoder"])


def test_exactly_the_layers_and_the_pooling_train(source, corpus, tmp_path):  # noqa: F811
    wavlm = WavLM(source)
    pooling = MHFA(
        tiny_wavlm.LAYERS + 1, tiny_wavlm.WIDTH, tiny.DIM, 2, compression=4
    )
    encoder = Branch(
        torch.nn.Identity(),
        LengthsCapableSequential(none=torch.nn.Identity()),
        LengthsCapableSequential(wavlm=wavlm, pooling=pooling),
    )
    brain = make_brain(
        corpus,
        str(tmp_path),
        encoder=encoder,
        epochs=1,
        learning_rates=layerwise_rates(wavlm, 0.01, 0.5),
        regularizer=DistanceToPretrained(wavlm),
        frozen_epochs=[[wavlm.layers[0], 1]],
    )
    before = tiny.state_of(brain)
    tiny.fit(brain)
    after = tiny.state_of(brain)
    moving = {n for n in before if not torch.equal(before[n], after[n])}
    pooled = "encoder.embedding_model.pooling."
    top = "encoder.embedding_model.wavlm.wavlm.model.encoder.layers.1."
    # a bias of all frames alike changes no share of them
    still = {f"{pooled}attention.bias"}
    wanted = {n for n in before if n.startswith((pooled, top, "classifier."))}
    assert moving - still == wanted - still
    distance = tiny.records(tmp_path)[0]["train"]["distance"]
    assert distance > 0
    rates = {
        id(p): g["initial_lr"]
        for g in brain.optimizer.param_groups
        for p in g["params"]
    }
    for layer, rate in zip(wavlm.layers, (0.005, 0.01)):
        assert {rates.pop(id(p)) for p in layer.parameters()} == {rate}
    others = [*pooling.parameters(), *brain.module("classifier").parameters()]
    assert rates.keys() == {id(p) for p in others}
