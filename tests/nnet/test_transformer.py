"""Pretrained transformers: what learns, what stays, and in which mode."""

import copy
import pickle

import pytest
import torch
import transformers
from speechbrain.integrations.huggingface.wavlm import WavLM as Wrapper
from speechbrain.nnet.containers import LengthsCapableSequential

from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.mhfa import MHFA, StatisticsPooling
from speechbrain_ssl.nnet.parameters import layerwise_rates
from speechbrain_ssl.nnet.regularizers import DistanceToPretrained
from speechbrain_ssl.nnet.transformer import (
    PretrainedTransformer,
    SeamlessFbank,
)
from tests.brains import tiny
from tests.brains.conftest import corpus  # noqa: F401
from tests.brains.test_pseudo_label import make_brain
from tests.nnet import tiny_transformer

LARGE = {
    "normalize": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
KINDS = pytest.mark.parametrize(
    "kind",
    [
        *("wavlm", "hubert", "wav2vec2", "w2v_bert"),
        *("wavlm large", "hubert large", "wav2vec2 large", "w2v_bert large"),
    ],
)
SIZES = (tiny_transformer.LAYERS + 1, tiny_transformer.WIDTH)
POOLINGS = [
    lambda: MHFA(*SIZES, emb_dim=6, heads=2, compression=4),
    lambda: StatisticsPooling(*SIZES, emb_dim=6, attention_channels=8),
]


def written(folder, kind):
    family, *size = kind.split()
    settings = LARGE if size else {}
    if kind == "w2v_bert large":
        settings = {"position_embeddings_type": "relative_key"}
    return tiny_transformer.write(folder / "net", family=family, **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_transformer.write(tmp_path_factory.mktemp("a wavlm"))


def wavs(count=2, seconds=0.2):
    return 0.1 * torch.randn(count, round(16000 * seconds))


def test_hidden_states_are_those_of_speechbrains_wrapper(source):
    wrapper = Wrapper(source, source, output_all_hiddens=True).eval()
    wav = wavs()
    found = PretrainedTransformer(source).eval()(wav)
    assert found.shape[0] == tiny_transformer.LAYERS + 1
    assert found.shape[-1] == tiny_transformer.WIDTH
    torch.testing.assert_close(found, wrapper(wav))


@KINDS
def test_states_are_the_inputs_of_the_layers_and_the_output(tmp_path, kind):
    net = PretrainedTransformer(written(tmp_path, kind)).eval()
    inputs, outputs = [], []
    for layer in net.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        layer.register_forward_hook(lambda *args: outputs.append(args[-1]))
    states = net(wavs())
    torch.testing.assert_close(states[:-1], torch.stack(inputs))
    last = outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1]
    if net.model.config.to_dict().get("do_stable_layer_norm"):
        last = net.model.encoder.layer_norm(last)
    torch.testing.assert_close(states[-1], last)


@KINDS
def test_padding_reaches_neither_states_nor_embeddings(tmp_path, kind):
    net = PretrainedTransformer(written(tmp_path, kind)).eval()
    counts = [16000, 9001, 9001, 5555, 1234]
    each = [wavs(1, n / 16000) * 0.5**i for i, n in enumerate(counts)]
    batch = torch.nn.utils.rnn.pad_sequence([w[0] for w in each], True)
    lengths = torch.tensor(counts) / max(counts)
    with torch.no_grad():
        alone, together = [net(wav) for wav in each], net(batch, lengths)
    for number, states in enumerate(alone):
        frames = states.shape[2]
        torch.testing.assert_close(
            together[:, number, :frames], states[:, 0], atol=1e-4, rtol=1e-4
        )
        assert not together[:, number, frames:].any()
    for pooling in POOLINGS:
        torch.manual_seed(0)
        encoder = LengthsCapableSequential(wavlm=net, pooling=pooling()).eval()
        with torch.no_grad():
            one = torch.cat([encoder(wav, torch.ones(1)) for wav in each])
            many = encoder(batch, lengths)
        similarity = torch.cosine_similarity(one[:, 0], many[:, 0])
        assert similarity.min() > 0.9999, (pooling, similarity)


def test_features_of_w2v_bert_are_those_of_hugging_face():
    reference = transformers.SeamlessM4TFeatureExtractor()
    for count in (560, 16000, 16001, 20480):
        wav = torch.randn(2, count) * torch.tensor([[0.3], [1e-2]])
        wav += 0.01  # a constant offset is removed
        found = SeamlessFbank()(wav)
        wanted = reference(
            list(wav.numpy()), sampling_rate=16000, return_tensors="pt"
        )["input_features"]
        assert found.shape[1] in (wanted.shape[1], wanted.shape[1] - 1)
        wanted = wanted[:, : found.shape[1]]
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=1e-3)


def test_no_layer_is_left_out_in_training(source):
    net = PretrainedTransformer(source).train()
    for _ in range(5):
        assert len(net(wavs())) == tiny_transformer.LAYERS + 1


def test_named_parts_learn_and_nothing_else(source):
    net = PretrainedTransformer(
        source, trained=["encoder.layers.1", "encoder.layer_norm"]
    )
    model = net.model
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
    net = PretrainedTransformer(source)
    for mode in (True, False, True):
        net.train(mode)
        model = net.model
        assert model.encoder.layers[1].dropout.training is mode
        for part in (
            model,
            model.feature_extractor,
            model.feature_projection.dropout,
            model.encoder.dropout,
        ):
            assert not part.training


def test_frozen_front_end_keeps_no_graph(source):
    net = PretrainedTransformer(source).train()
    with torch.enable_grad():
        front = net.model.feature_extractor(wavs())
    assert not front.requires_grad


def test_gradient_checkpointing_changes_no_gradient(source):
    nets = [
        PretrainedTransformer(
            source, gradient_checkpointing=on, trained=["encoder.layers"]
        )
        for on in (False, True)
    ]
    wav, gradients = wavs(), []
    for net in nets:
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for name in ("attention_dropout", "hidden_dropout"):
            setattr(net.model.config, name, 0.0)
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
    net = PretrainedTransformer(source).eval()
    frames = torch.randn(2, 9, tiny_transformer.WIDTH)
    with torch.no_grad():
        exact = net.model.encoder(frames).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        low = net.model.encoder(frames).last_hidden_state
        net(wavs(), torch.tensor([1.0, 0.7])).float().square().sum().backward()
    assert (low.float() - exact).norm() < 0.05 * exact.norm()
    for parameter in net.layers.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("family", ["wavlm", "hubert", "wav2vec2", "w2v_bert"])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_architecture_is_made_again_without_files(
    tmp_path, family, normalize
):
    folder = tiny_transformer.write(tmp_path / family, normalize, family)
    net = PretrainedTransformer(folder, lora={"rank": 2} if normalize else None)
    again = PretrainedTransformer(**net.eval().architecture()).eval()
    again.load_state_dict(net.state_dict())
    wav = 3 + wavs()
    found = net(wav)
    assert found.shape[::3] == (
        tiny_transformer.LAYERS + 1,
        tiny_transformer.WIDTH,
    )
    torch.testing.assert_close(again(wav), found)
    assert again.architecture() == net.architecture()


@pytest.mark.parametrize("family", ["wavlm", "w2v_bert"])
def test_adapters_learn_alone_and_change_nothing_at_first(tmp_path, family):
    folder = tiny_transformer.write(tmp_path / family, family=family)
    plain = PretrainedTransformer(folder).eval()
    net = PretrainedTransformer(folder, lora={"rank": 2, "alpha": 4}).eval()
    wav = wavs()
    torch.testing.assert_close(net(wav), plain(wav))
    learning = {n: p for n, p in net.named_parameters() if p.requires_grad}
    assert learning and all(".adapter_" in name for name in learning)
    per_layer = 2 if family == "wavlm" else 4  # linear layers with two each
    assert len(learning) == 2 * per_layer * tiny_transformer.LAYERS
    before = net(wav).detach()
    net.train()(wav).square().mean().backward()
    # of two factors the one that is zero moves first
    with torch.no_grad():
        for name, parameter in learning.items():
            assert parameter.grad is not None, name
            parameter -= 0.1 * parameter.grad.sign()
    assert not torch.allclose(net.eval()(wav), before, atol=1e-4)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_copies_and_pickles_are_the_same_network(source, lora):
    net = PretrainedTransformer(
        source, lora=lora, gradient_checkpointing=True
    ).eval()
    next(iter(net.layers.parameters())).requires_grad_(False)
    state, wav = torch.get_rng_state(), wavs()
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(again(wav), net(wav))
        assert not again.training and again.layers[0].gradient_checkpointing
        assert [p.requires_grad for p in again.parameters()] == [
            p.requires_grad for p in net.parameters()
        ]
        own = {p.data_ptr() for p in again.parameters()}
        assert not own & {p.data_ptr() for p in net.parameters()}
    torch.set_rng_state(state)
    pickle.loads(pickle.dumps(net))
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_needs_something_to_adapt(source):
    with pytest.raises(ValueError, match="LoRA could adapt"):
        PretrainedTransformer(
            source, trained=["feature_projection"], lora={"rank": 2}
        )


def test_source_or_architecture_must_be_given(source):
    with pytest.raises(ValueError, match="one of them"):
        PretrainedTransformer()
    with pytest.raises(ValueError, match="one of them"):
        PretrainedTransformer(source, architecture={})


def test_another_sample_rate_is_refused(source):
    with pytest.raises(ValueError, match="16000 Hz, found sample_rate 8000"):
        PretrainedTransformer(source, sample_rate=8000)


def test_a_part_that_is_not_there_is_named(source):
    with pytest.raises(ValueError, match="no part 'decoder'.*encoder"):
        PretrainedTransformer(source, trained=["decoder"])


def test_exactly_the_layers_and_the_pooling_train(source, corpus, tmp_path):  # noqa: F811
    wavlm = PretrainedTransformer(source)
    pooling = MHFA(
        tiny_transformer.LAYERS + 1,
        tiny_transformer.WIDTH,
        tiny.DIM,
        2,
        compression=4,
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
    top = "encoder.embedding_model.wavlm.model.encoder.layers.1."
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
