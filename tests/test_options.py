"""The command line: what was typed arrives, what is wrong is said."""

import json
import time

import pytest
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ssl import runtime
from speechbrain_ssl.options import (
    OptionsError,
    load_experiment,
    resolved,
    run_option_types,
    settings_of,
)

YAML = """\
data_folder: !PLACEHOLDER
seed: 1
lr: 0.1
temperature: 0.2
skip_prep: False
views:
    global_seconds: 3
    inner: {crops: 2}
table: {}
double: !ref <seed> * 2
net: !new:torch.nn.Linear
    in_features: !ref <seed>
    out_features: 2
"""


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file and returns its name."""

    def write(text, name="train_moco.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def load(write):
    """Loads the YAML above, or another one, with the given arguments."""

    def load(*argv, text=YAML):
        if text is YAML:
            argv = ("--data_folder=x", *argv)
        return load_experiment([write(text), *argv])

    return load


@pytest.mark.parametrize(
    "typed, expected",
    [
        (["5"], 5),
        (["-1"], -1),
        (["1e-3"], 0.001),
        (["True"], True),
        (["null"], None),
        (["None"], None),
        (["'None'"], "None"),
        (["/a=b/c"], "/a=b/c"),
        (["C# & D"], "C# & D"),
        (["a #b"], "a #b"),
        (["# all"], "# all"),
        (["a: b"], "a: b"),
        (["5\nseed: 3"], "5\nseed: 3"),
        (["@x %y"], "@x %y"),
        (["2024-01-01"], "2024-01-01"),
        (["data/été"], "data/été"),
        (["C:\\new"], "C:\\new"),
        ([""], ""),
        (["[1, a]"], [1, "a"]),
        (["[1,", "2]"], [1, 2]),
        (["(1, 2)"], (1, 2)),
        (["{a: {b: 1}}"], {"a": {"b": 1}}),
        (["!ref <seed> + 4"], 5),
        (["!new:collections.Counter"], {}),
    ],
)
def test_value_arrives_as_typed(load, typed, expected):
    key = "table" if isinstance(expected, dict) else "temperature"
    hparams = load(f"--{key}", *typed)[2]
    assert hparams[key] == expected
    assert type(hparams[key]) is type(expected) or expected == {}


def test_equals_sign_form_equals_the_spaced_one(load):
    spaced = load("--lr", "1e-3", "--temperature", "a=b=--c")
    joined = load("--lr=1e-3", "--temperature=a=b=--c")
    assert spaced[3] == joined[3]
    assert joined[2]["temperature"] == "a=b=--c"
    assert load("--temperature=--x")[2]["temperature"] == "--x"


def test_overrides_reach_references_and_objects(load):
    _, _, hparams, _ = load("--seed", "4", "--views", "{inner: {crops: 7}}")
    assert hparams["double"] == 8
    assert hparams["net"].in_features == 4
    assert hparams["views"] == {"global_seconds": 3, "inner": {"crops": 7}}


def test_argv_is_the_command_line_by_default(write, monkeypatch):
    file = write("seed: 1\n")
    monkeypatch.setattr("sys.argv", ["train.py", file, "--seed", "2"])
    assert load_experiment()[2]["seed"] == 2


def test_overrides_go_into_the_experiment_directory(load, tmp_path):
    file, _, _, overrides = load("--temperature", "a: #b", "--lr=None")
    sb.create_experiment_directory(
        str(tmp_path / "out"), file, overrides, save_env_desc=False
    )
    saved = (tmp_path / "out" / "hyperparams.yaml").read_text()
    saved = yaml.safe_load(saved.partition("net:")[0])
    assert (saved["temperature"], saved["lr"]) == ("a: #b", None)


@pytest.mark.parametrize("argv", [["--skip_prep"], ["--skip_prep", "True"]])
def test_flag_of_a_boolean_key_may_stand_alone(load, argv):
    assert load(*argv, "--seed", "3")[2]["skip_prep"] is True
    assert load(*argv)[2]["skip_prep"] is True


@pytest.mark.parametrize("argv", [["--lr"], ["--lr", "--seed", "3"]])
def test_other_keys_need_a_value(load, argv):
    with pytest.raises(OptionsError, match="--lr needs a value"):
        load(*argv)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--temperatur", "1"], r"moco.yaml. Did you mean --temperature\?"),
        (["--temperatur=1"], "--temperatur is not a key of "),
        (["--devise", "cpu"], r"Did you mean --device\?"),
        (["--qqqqq", "1"], r"--qqqqq is not a key of .*yaml\.$"),
        (["--views.inner", "1"], r'Write --views "\{inner: VALUE\}"'),
        (["--lr", "1", "--lr", "2"], "--lr is given twice"),
        (["--debug", "--debug"], "--debug is given twice"),
        (["--lr", "1", "2"], "'2' belongs to no option"),
        (["-d", "cpu"], "'-d' belongs to no option"),
        (["--views", "{global_second: 3}"], "Did you mean global_seconds"),
        (["--views", "{inner: {crop: 3}}"], "--views: inner: 'crop' is not"),
        (["--views", "{global_seconds: None}"], "write null, not None"),
        (["--net", "{out_feature: 3}"], "Did you mean out_features"),
        (["--lr", "{a: 1}"], "--lr is given as a mapping, but .* 0.1"),
        (["--double", "{a: 1}"], "no mapping there but !ref <seed>"),
        (["--net", "!new:torch.nn.Dropout {a: 1}"], "--net: 'a' is not a key"),
        (["--net", "!new:torch.nn.Linea {}"], "'net' cannot be built"),
        (
            ["--table", "{clusterer: {method: kmeans, n_clusters: 9}}"],
            "write the class: !new:speechbrain_ssl.clustering.kmeans.KMeans",
        ),
        (["--lr", "[1"], r"--lr: '\[1' is no YAML value"),
        (["--views", "{inner: 1, inner: 2}"], "duplicate key"),
    ],
)
def test_mistake_on_the_command_line_is_explained(load, argv, message):
    with pytest.raises(OptionsError, match=message):
        load(*argv)


def test_another_tag_replaces_an_object(load):
    given = "!new:torch.nn.Dropout {p: !ref <temperature>}"
    _, _, hparams, overrides = load("--net", given)
    assert isinstance(hparams["net"], torch.nn.Dropout)
    assert hparams["net"].p == 0.2


@pytest.mark.parametrize("old", ["[4, 3]", "null", "3"])
def test_a_mapping_inside_an_object_replaces_what_is_none(load, old):
    text = f"net: !new:builtins.dict {{sizes: {old}}}"
    _, _, hparams, _ = load("--net={sizes: {a: 5}}", text=text)
    assert hparams["net"] == {"sizes": {"a": 5}}


def test_the_same_tag_changes_arguments(load):
    _, _, hparams, _ = load("--net", "!new:torch.nn.Linear {out_features: 5}")
    assert hparams["net"].weight.shape == (5, 1)


@pytest.mark.parametrize("key", ["temperature", "double", "table"])
def test_an_object_replaces_a_value_a_reference_and_a_mapping(load, key):
    _, _, hparams, _ = load(f"--{key}=!new:torch.nn.Dropout {{p: 0.3}}")
    assert hparams[key].p == 0.3


def test_an_object_inside_a_mapping_is_replaced(load, write):
    text = (
        "outer: {net: !new:torch.nn.Linear {in_features: 1, out_features: 2}}"
    )
    change = "{net: !new:torch.nn.Dropout {p: 0.3}}"
    _, _, hparams, overrides = load("--outer", change, text=text)
    assert hparams["outer"]["net"].p == 0.3
    settings = settings_of(write(text), overrides)
    assert settings["outer"]["net"] == ["!new:torch.nn.Dropout", {"p": 0.3}]
    assert "Linear" not in resolved(write(text), overrides)


def test_a_replaced_object_needs_no_value_for_its_placeholders(load):
    text = "net: !new:torch.nn.Linear\n    in_features: !PLACEHOLDER\n"
    _, _, hparams, _ = load("--net=!new:torch.nn.Dropout {p: 0.3}", text=text)
    assert hparams["net"].p == 0.3


def test_an_object_of_an_included_file_is_not_replaced(load, write):
    write("net: !new:torch.nn.Linear {in_features: 1}", "inner.yaml")
    with pytest.raises(OptionsError, match="cannot turn .* in an included"):
        load(
            "--inner={net: !new:torch.nn.Dropout {p: 0.3}}",
            text="inner: !include:inner.yaml {net: {in_features: 2}}",
        )


def test_argument_of_an_object_need_not_stand_in_the_yaml(load):
    assert load("--net", "{bias: False}")[2]["net"].bias is None


def test_inner_keys_of_an_included_file_are_known(load, write):
    write("crops: 2\nseconds: 3\n", "views.yaml")
    text = "views: !include:views.yaml\n    seconds: 4\n"
    hparams = load("--views", "{crops: 5}", text=text)[2]
    assert hparams["views"] == {"crops": 5, "seconds": 4}
    with pytest.raises(OptionsError, match="Did you mean crops"):
        load("--views", "{crop: 5}", text=text)


# What SpeechBrain's parser was seen to take for a run option, or to refuse.
SWALLOWED = (
    "data optimizer optim log test eval max grad dist distributed prec skip "
    "find remove tqdm a e n d deb comp ckpt profile"
).split()


@pytest.mark.parametrize("name", SWALLOWED)
def test_beginning_of_a_run_option_is_refused(load, name):
    with pytest.raises(OptionsError, match=f"--{name} is no option") as error:
        load(f"--{name}", "1")
    assert f"--{name}" in str(error.value).partition("Did you mean")[2]


@pytest.mark.parametrize("name", SWALLOWED)
def test_yaml_key_that_speechbrain_would_swallow_is_refused(load, name):
    with pytest.raises(OptionsError, match=f"the key '{name}' is the beg"):
        load(text=f"{name}: 1\n")


def test_yaml_key_that_is_a_run_option_or_longer_is_fine(load):
    text = "compile: False\ndata_folder: x\noptimizer_class: y\nprecision: bf16"
    assert load(text=text)[2]["data_folder"] == "x"


def test_run_options_are_those_of_speechbrain():
    parser = RunOptions._create_parser()
    names = {action.dest for action in parser._actions}
    assert set(run_option_types()) == names - {"help", "param_file"}


def test_run_options_have_the_type_of_their_field(load):
    run_opts = load(
        *["--optimizer_step_limit", "1", "--max_grad_norm=2", "--debug"],
        *[
            "--ckpt_interval_minutes",
            "15",
            "--device",
            "cpu",
            "--noprogressbar",
        ],
        *["--compile_module_keys", "a", "b", "--log_config", "None"],
    )[1]
    assert run_opts.optimizer_step_limit == 1
    assert type(run_opts.max_grad_norm) is float
    assert (run_opts.debug, run_opts.noprogressbar) == (True, True)
    assert run_opts.compile_module_keys == ["a", "b"]
    assert run_opts.log_config is None
    assert run_opts.overridden_args == {
        *("optimizer_step_limit", "max_grad_norm", "debug", "device"),
        *("ckpt_interval_minutes", "noprogressbar", "compile_module_keys"),
        *("log_config", "precision", "distributed_backend"),
    }


def test_flag_can_be_switched_off(load):
    assert load("--debug", "False")[1].debug is False
    assert load("--debug=false")[1].debug is False


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--precision", "half"], "takes fp32, fp16, bf16, not 'half'"),
        (["--optimizer_step_limit=x"], "takes a whole number, not 'x'"),
        (["--max_grad_norm", "big"], "takes a number, not 'big'"),
        (["--debug", "maybe"], "--debug takes True or False"),
        (["--device"], "--device needs a value"),
    ],
)
def test_run_option_of_a_wrong_type_is_refused(load, argv, message):
    with pytest.raises(OptionsError, match=message):
        load(*argv)


@pytest.mark.parametrize("name", ["test_only", "data_parallel_backend"])
def test_run_options_that_nothing_follows_are_refused(load, name):
    with pytest.raises(OptionsError, match=f"--{name} has no effect here"):
        load(f"--{name}")
    load(f"--{name}", "False")


def test_brain_takes_run_options_from_both_sides(load):
    text = "precision: bf16\nmax_grad_norm: 7.0\nckpt_interval_steps: 3\n"
    argv = ["--max_grad_norm", "2", "--device", "cpu"]
    _, run_opts, hparams, overrides = load(*argv, text=text)
    model = {"model": torch.nn.Linear(1, 1)}
    brain = sb.Brain(model, None, hparams, run_opts)
    assert (brain.precision, brain.ckpt_interval_steps) == ("bf16", 3)
    assert (brain.max_grad_norm, brain.device) == (2.0, "cpu")
    assert hparams["max_grad_norm"] == 2
    assert overrides == "max_grad_norm: 2"


@pytest.mark.parametrize(
    "argv, text, expected",
    [
        ([], "seed: 1", "for cpu:9"),
        (["--device", "cuda:1"], "device: cpu", "for cuda:1"),
        ([], "device: cpu", "for cpu"),
        (["--precision", "fp32"], "seed: 1", "fp32"),
        ([], "precision: bf16", "fp32"),  # left to the YAML: SpeechBrain's own
    ],
)
def test_precision_suits_the_device_unless_given(
    load, monkeypatch, argv, text, expected
):
    monkeypatch.setattr(runtime, "default_precision", lambda d: f"for {d}")
    monkeypatch.setattr("speechbrain_ssl.options.infer_device", lambda: "cpu:9")
    run_opts = load(*argv, text=text)[1]
    assert run_opts.precision == expected
    given = "precision" in run_opts.overridden_args
    assert given == ("precision" not in text)
    on_gpu = "cuda" in "".join(argv)
    assert run_opts.distributed_backend == ("nccl" if on_gpu else "gloo")


@pytest.mark.parametrize(
    "text, argv, message",
    [
        (
            "data_folder: !PLACEHOLDER\nout: !PLACEHOLDER\nlr: 1\n",
            [],
            "yaml needs a value for: data_folder, out. Give it as "
            "--data_folder VALUE --out VALUE",
        ),
        (
            "data_folder: !PLACEHOLDER\nout: !PLACEHOLDER\n",
            ["--out", "x"],
            "needs a value for: data_folder. Give",
        ),
        (
            "outer:\n    inner: !PLACEHOLDER\n    other: 1\n",
            ["--outer", "{other: 2}"],
            r"value for: outer\[inner\]. Give it as "
            r'--outer "\{inner: VALUE\}"',
        ),
    ],
)
def test_all_missing_values_are_told_at_once(load, text, argv, message):
    with pytest.raises(OptionsError, match=message):
        load(*argv, text=text)


def test_nested_placeholder_can_be_given(load):
    text = "outer:\n    inner: !PLACEHOLDER\n    other: 1\n"
    hparams = load("--outer", "{inner: 4}", text=text)[2]
    assert hparams["outer"] == {"inner": 4, "other": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a_b: 1\nlr: 2\na_b: 3\n", 'line 3: found duplicate key "a_b"'),
        (
            "net: !new:torch.nn.Linear\n    in_features: -1\n"
            "    out_features: 2\n",
            r"the key 'net' .*torch.nn.Linear.*negative dimension",
        ),
        (
            "net: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN\n"
            "    input_size: 3\n    channels: [8, 8]\n",
            "the key 'net' .*: AssertionError at `assert len\\(channels",
        ),
        ("lr: 1\nx: [1, 2\n", "moco.yaml, line 3 is not readable as YAML"),
        ("just text\n", "must consist of lines 'key: value'"),
        ("", "must consist of lines 'key: value'"),
        (
            "lr: 1\nnet: !new:torch.nn.Linea\n    in_features: 1\n",
            r"the key 'net' cannot be built \(torch.nn.Linea\): There is no",
        ),
        (
            "net: !new:torch.nn.Linear\n    in_features: 1\n    size: 2\n",
            r"the key 'net' .*\(torch.nn.Linear\): .* argument 'size'",
        ),
        (
            "good: !new:torch.nn.Linear\n    in_features: 1\n"
            "    out_features: 2\nbad: !new:torch.nn.Sequential\n"
            "    - !new:torch.nn.Linear\n        in_features: 1\n"
            "        out_featurs: 2\nlater: 1\n",
            r"the key 'bad' .*\(torch.nn.Linear\): .*'out_featurs'",
        ),
        (
            "norm: !new:torch.nn.GroupNorm\n    num_groups: 2\n"
            "    num_channels: 3\n",
            "the key 'norm' .*: num_channels .* must be divisible",
        ),
        ("lr: !ref <lr2>\n", 'The reference "lr2" is not valid'),
        ("x: !ref <y>\ny: !ref <x>\n", "a !ref leads back to itself"),
        ("x: !include:nowhere.yaml\n", "nowhere.yaml"),
    ],
)
def test_mistake_in_the_yaml_names_file_and_key(load, text, message):
    with pytest.raises(OptionsError, match=message) as error:
        load(text=text)
    assert "train_moco.yaml" in str(error.value)
    assert error.value.__cause__ is not None or "must consist" in message


OURS = "!new:speechbrain_ssl.dataio.views.ViewSampler"


@pytest.mark.parametrize(
    "text, argv, message",
    [
        ("room_folder: x\n", [], "'room_folder' is now called 'rir_folder'"),
        ("corruption: x\n", [], "'corruption' is now .* 'augmentation'"),
        (f"v: {OURS}\n    corrupt_on: device\n", [], "'augment_on'"),
        (f"v: [{OURS} {{clean_twins: True}}]\n", [], "'clean_views'"),
        (
            "aug: !new:speechbrain_ssl.dataio.corruption.Corruption {}\n",
            [],
            "dataio.augmentation.Augmentation",
        ),
        ("rir_folder: x\n", ["--room_folder=y"], "now called --rir_folder"),
        ("v: {}\n", ["--v={corrupt_on: device}"], "--v: .* 'augment_on'"),
    ],
)
def test_keys_of_before_are_refused_with_their_new_name(
    load, text, argv, message
):
    with pytest.raises(OptionsError, match=message):
        load(*argv, text=text)


def test_other_packages_may_use_the_old_names(load):
    text = "room: !new:builtins.dict\n    room_folder: 3\n"
    assert load(text=text)[2]["room"] == {"room_folder": 3}


def test_mistake_in_an_included_file_names_that_file(load, write):
    write("crops: 2\nx: [1\n", "views.yaml")
    with pytest.raises(
        OptionsError, match="views.yaml, line 3 is not readable"
    ):
        load(text="views: !include:views.yaml\n")


def test_module_that_cannot_be_imported_is_said(load, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        OptionsError, match="'net' .*: No module named 'no_such"
    ):
        load(text="net: !new:broken_module.Net\n")


@pytest.mark.parametrize("argv", [[], ["--lr", "1"]])
def test_yaml_file_comes_first(argv):
    with pytest.raises(OptionsError, match="The YAML file comes first"):
        load_experiment(argv)


def test_missing_file_names_the_nearest_one(write):
    file = write("seed: 1\n")
    with pytest.raises(OptionsError, match="Did you mean .*train_moco.yaml"):
        load_experiment([file.replace("moco", "mocco")])


def test_key_that_the_script_needs_and_the_yaml_lacks_is_named(load):
    hparams = load()[2]
    assert hparams.get("optimizer") is None
    with pytest.raises(
        OptionsError, match="no key 'temprature'.*Did you mean temperature"
    ):
        hparams["temprature"]


def test_home_is_filled_in_where_shells_leave_it(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = (
        "seed: 1\na_folder: x\nb_folder: ~/b\nx: !ref ~/c/<seed>\n"
        "y: [{e: ~/e}, ~]\nz: x~/f\n"
    )
    hparams = load("--a_folder=~/a", text=text)[2]
    assert {**hparams} == {
        "seed": 1,
        "a_folder": "/home/me/a",
        "b_folder": "/home/me/b",
        "x": "/home/me/c/1",
        "y": [{"e": "/home/me/e"}, None],
        "z": "x~/f",
    }


def test_a_module_beside_the_file_that_python_does_not_find_is_named(
    load, tmp_path
):
    (tmp_path / "my_loss.py").write_text("class Loss:\n    pass\n")
    for name, where in (("my_loss", f"PYTHONPATH={tmp_path}"), ("your", "")):
        message = f"no such class as {name}.Loss.* '{name}': .*{where}"
        with pytest.raises(OptionsError, match=message):
            load(text=f"lr: 1\nloss: !new:{name}.Loss {{}}\n")


def test_refused_argument_names_the_key_that_it_refers_to(load):
    text = (
        "tau: -1\nsize: 3\nseed: 1.5\nother: 1\n"
        "net: !new:tests.test_checks.Loss\n"
        "    dim: !ref <other>\n    temperature: !ref <tau>\n"
    )
    with pytest.raises(OptionsError) as error:
        load(text=text)
    assert "the key 'net' cannot be built" in str(error.value)
    assert "temperature must be a number above 0, not -1" in str(error.value)
    assert str(error.value).endswith("(It refers to 'tau'.)")
    with pytest.raises(OptionsError, match="__set_seed.*refers to 'seed'"):
        load(
            text="seed: x\n__set_seed: !apply:torch.manual_seed [!ref <seed>]\n"
        )


def test_settings_are_read_without_making_objects(write):
    write("d: 1\ne: [x]\n", "part.yaml")
    path = write(
        "a: 1 # one\n"
        "b: !new:no.such.Class\n    sizes: [1.5, !ref <a>]\n"
        "c: !PLACEHOLDER\n"
        "d: {e: null, f: true, g: 'x'}\n"
        "h: !include:part.yaml\n    d: 2\n"
    )
    found = settings_of(path, "c: /audio\nb: {rate: .inf}")
    assert found == {
        "a": 1,
        "b": [
            "!new:no.such.Class",
            {"sizes": [1.5, ["!ref", "<a>"]], "rate": float("inf")},
        ],
        "c": "/audio",
        "d": {"e": None, "f": True, "g": "x"},
        "h": {"d": 2, "e": ["x"]},
    }
    assert json.loads(json.dumps(found)) == found
    assert type(found["b"][1]["sizes"][0]) is float


def test_long_yaml_is_read_in_well_under_a_second(load):
    lines = [f"key_{i}: [{i}, text, {{x: 1.5}}]" for i in range(100)]
    argv = [f"--key_{i}=[{i}]" for i in range(10)]
    start = time.process_time()
    load(*argv, text="\n".join(lines))
    assert time.process_time() - start < 1


def test_a_folder_may_be_called_by_a_number(load):
    _, _, hparams, _ = load(
        *("--data_folder=2024", "--output_folder=007", "--seed=3"),
        text="data_folder: !PLACEHOLDER\nseed: 1\n"
        "output_folder: !ref results/<seed>\nsave: !ref <output_folder>/save\n",
    )
    assert hparams["data_folder"] == "2024" and hparams["seed"] == 3
    assert hparams["save"] == "007/save"
    for key in ("init_from", "continue_from", "wavlm_source", "embeddings"):
        assert load(f"--{key}=2024", text=f"{key}: null\n")[2][key] == "2024"
    with pytest.raises(OptionsError, match="--data_folder is empty"):
        load("--data_folder=", text="data_folder: !PLACEHOLDER\n")
