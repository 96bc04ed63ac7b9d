"""Foreign YAML builds networks, and runs nothing else."""

import pytest
import torch

from speechbrain_ssl.safe_yaml import UnsafeError, build, check

TRANSFORMER = "!new:speechbrain_ssl.nnet.transformer.PretrainedTransformer"


def test_networks_are_built_as_by_hyperpyyaml():
    text = """
n: 3
linear: !new:torch.nn.Linear
    in_features: !ref <n>
    out_features: !ref <n> * 2
again: !ref <linear>
others:
- !ref <linear>
- (1, 2, same)
- 1e-3
- null
relu: !name:torch.nn.ReLU {inplace: True}
"""
    check(text, "x.yaml")
    keys = [("linear",), ("again",), ("others",), ("relu",), ("none",)]
    linear, again, others, relu, missing = build(text, "x.yaml", keys)
    assert linear.weight.shape == (6, 3) and again is linear
    assert others[0] is linear
    assert others[1:] == [(1, 2, "same"), 0.001, None]
    assert isinstance(relu(), torch.nn.ReLU) and relu().inplace
    assert missing is None


@pytest.mark.parametrize(
    "text",
    [
        "a: !apply:os.system [x]",
        "a: !name:os.system",
        "a: !module:os",
        "a: !new:subprocess.Popen [x]",
        "a: !applyref:os.system [x]",
        "a: !include:/etc/passwd",
        "a: !!python/object/apply:os.system [x]",
        "a: !!python/name:os.system",
        "a: !<tag:yaml.org,2002:python/object/new:os.system> [x]",
        # tags by other names
        "%TAG !e! !apply:os.\n---\na: !e!system [x]",
        "%TAG !e! !include:\n---\na: !e!/etc/passwd",
        "a: !new%3Aos.system [x]",
        # wherever they stand
        "a: [1, {b: [!apply:os.system [x]]}]",
        "? !apply:os.system [x]\n: 1",
        "b: &x !apply:os.system [x]\na: *x",
        "a: (!!python/object/apply:os.system [x])",
        # in modules of networks, but no network of theirs
        "a: !new:speechbrain.lobes.features.partial [x]",
        "a: !name:torch.nn.functional.relu",
        "a: !new:torch.nn.Parameter",
        # functions and classes that read files or run commands
        "a: !name:torch.hub.load",
        "a: !name:speechbrain.utils.superpowers.run_shell",
        "a: !new:speechbrain.lobes.models.beats.BEATs {ckp_path: x}",
        "a: !new:speechbrain.lobes.models.MSTacotron2.TextMelCollate [x, x]",
        "a: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2 [x]",
        f"a: {TRANSFORMER} [x]",
        f"a: {TRANSFORMER} {{source: x}}",
        f"b: &x {{source: x}}\na: {TRANSFORMER}\n    <<: *x",
        # attributes of objects, and trees without end
        "b: 1\na: !ref <b.real>",
        "a: &x [*x]",
        "b: &b [" + "1, " * 400 + "]\na: [" + "*b, " * 400 + "]",
    ],
)
def test_anything_else_is_refused_before_it_runs(text):
    with pytest.raises(UnsafeError, match="x.yaml"):
        check(text, "x.yaml")
        build(text, "x.yaml", [("a",)])


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1]", "a: [", "a: 1\n---\nb: 2", "a: " + "[" * 5000),
        "a: !ref <b>",
        "a: !new:torch.nn.Linear {size: 3}",
        "a: !new:torch.nn.NoSuchLayer",
        "a: !new:speechbrain.nnet.losses.torch.nn.Linear [1, 2]",
        # constructors that raise errors of other kinds
        "a: !new:torch.nn.Linear [-1, 2]",
        "a: !new:torch.nn.Linear [1000000000, 1000000000]",
        "a: !new:torch.nn.Linear {in_features: 1, out_features: 1, device: x}",
        "a: !new:torch.nn.Conv1d [3, 3, 1, 1, 0, 1, 2]",
        "a: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN\n"
        "    input_size: 40\n    channels: [8, 8]",
        "a: {? [1, 2] : 3}",
        "a: {<<: 3}",
    ],
)
def test_a_file_that_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match="x.yaml"):
        check(text, "x.yaml")
        build(text, "x.yaml", [("a",)])


def test_what_is_not_asked_for_is_not_built():
    text = "a: !new:torch.nn.ReLU\nb: !new:os_of_nobody.Thing\n"
    (relu,) = build(text, "x.yaml", [("a",)])
    assert isinstance(relu, torch.nn.ReLU)


def test_trust_names_a_module_or_a_class_and_no_function():
    text = "a: !new:collections.Counter [[1, 1]]"
    for trust in ("collections", "collections.Counter"):
        check(text, "x.yaml", [trust])
        assert build(text, "x.yaml", [("a",)], [trust]) == [{1: 2}]
    with pytest.raises(UnsafeError, match="--trust collections.Counter"):
        check(text, "x.yaml", ["coll", "os"])
    with pytest.raises(UnsafeError, match="os.system"):
        check("a: !name:os.system", "x.yaml", ["os"])
