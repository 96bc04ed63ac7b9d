"""From a training run to a folder that SpeechBrain loads.

The folder holds ``hyperparams.yaml``, ``embedding_model.ckpt`` and a model
card; ``threshold.json`` once a threshold was measured. ``EncoderClassifier``
and ``SpeakerRecognition`` load it. Its YAML names classes of torch and
speechbrain only, so that this package is not needed; encoders with a
pretrained transformer and those of ``speechbrain_ssl.nnet.encoders`` name this
package, need it, and say so.

Training ends with an export. This exports a run again::

    > python -m speechbrain_ssl.inference RUN_FOLDER [--folder MODEL_FOLDER]
"""

import contextlib
import copy
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import ruamel.yaml
import torch
from hyperpyyaml import resolve_references
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ssl import safe_yaml
from speechbrain_ssl.card import write_card
from speechbrain_ssl.checkpoints import is_disk_error
from speechbrain_ssl.dataio.annotations import size_of
from speechbrain_ssl.files import read_text
from speechbrain_ssl.help import command_parser
from speechbrain_ssl.loading import (
    ENCODER_KEYS,
    HPARAMS_NAME,
    WEIGHTS_NAME,
    build_branch,
    check_sample_rate,
    face_size_of,
    is_export,
    load_weights,
    weights_of_run,
)
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.transformer import PretrainedTransformer
from speechbrain_ssl.options import class_of, nodes_of

PIXELS = "speechbrain_ssl.nnet.face.Pixels"
DEFAULT_RATE = 16000  # of YAMLs without a key sample_rate
# what torch.compile and DDP put before the names of parameters
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
NEEDS = "It needs `pip install 'speechbrain>=1.0.3'`."
NEEDS_US = (
    "It needs the package speechbrain_ssl, whose classes `hyperparams.yaml` "
    "names, and `pip install 'speechbrain>=1.1.2' 'transformers>=4.57'`."
)
NEEDS_ENCODER = (
    "It needs the package speechbrain_ssl, whose encoder `hyperparams.yaml` "
    "names."
)
NORMALIZER = """\
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: {rate}

"""
NEEDS_FACES = (
    "It needs `pip install 'speechbrain_ssl[av]'`: classes of that package are "
    "in `hyperparams.yaml`."
)
INTERFACE = """\
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
"""


def encoder_hparams(
    hparams_text: str,
    architectures: Sequence[Mapping[str, Any]] = (),
    prefix: str = "",
) -> str:
    """Takes the encoder out of the YAML of a training run.

    ``hparams_text`` has overrides applied. ``architectures`` are the settings
    that make the pretrained networks in it without their files, of those with a
    ``source``, in order. ``prefix`` begins the keys of the encoder in that
    YAML: ``face_`` for the face encoder of an audio-visual training. Gives the
    YAML of a pretrained interface; classes that model folders must not name are
    an error.
    """
    yaml = ruamel.yaml.YAML()
    yaml.indent(mapping=4, sequence=6, offset=4)
    yaml.width = 4096
    tree = yaml.load(resolve_references(hparams_text))
    # of an interface of SpeechBrain they may be below modules only
    for key, node in (tree.get("modules") or {}).items():
        tree.setdefault(key, node)
    keys = [prefix + key for key in ENCODER_KEYS]
    missing = [key for key in keys if key not in tree]
    if missing:
        raise KeyError(
            f"The hparams file has no {', '.join(missing)}: these keys make "
            "the encoder that is exported"
        )
    # references have been replaced by the nodes that they name
    part = ruamel.yaml.comments.CommentedMap(
        (key, tree[own]) for key, own in zip(ENCODER_KEYS, keys)
    )
    for node in nodes_of(part):  # comments are about training
        if hasattr(node, "ca"):
            node.ca.comment = None
            node.ca.items.clear()
    _put_architectures(part, architectures)
    out = io.StringIO()
    yaml.dump(part, out)
    text = f"{out.getvalue()}\n"
    if class_of(part["compute_features"]) != PIXELS:
        rate = tree.get("sample_rate")
        if rate is None and isinstance(part["compute_features"], dict):
            rate = part["compute_features"].get("sample_rate")
        rate = DEFAULT_RATE if rate is None else rate
        text += NORMALIZER.format(rate=rate)
    text += INTERFACE
    try:
        safe_yaml.check(text, "The encoder cannot be exported")
    except safe_yaml.UnsafeError as error:  # no option of a training allows it
        said = str(error).partition(safe_yaml.HINT)[0]
        raise safe_yaml.UnsafeError(said) from error
    return text


def export(
    branch: Branch,
    hparams_text: str,
    folder: str,
    notes: str = "Trained without labels.",
    facts: Mapping[str, str] | None = None,
    prefix: str = "",
) -> str:
    """Writes an encoder as a folder for SpeechBrain, and checks it.

    The folder appears when it is complete: ``EncoderClassifier`` has loaded it
    with all weights, and gives the embeddings of the trained encoder. An
    exported folder that is there is replaced. The head of the branch is left
    behind; ``notes`` is the first paragraph of the model card, ``facts`` are
    rows of it (data, seed, label use), and ``prefix`` is as for
    ``encoder_hparams``.
    """
    folder = os.path.realpath(folder)  # of a link, what it leads to
    if os.path.isdir(folder) and not is_export(folder):
        raise ValueError(
            f"{folder} exists and is no exported model; name another folder"
        )
    names = branch.embedding_model.state_dict()
    wrapped = [key for key in names if key.startswith(WRAPPER_PREFIXES)]
    if wrapped:
        raise ValueError(
            f"The encoder's weights are named {wrapped[0]} ...: unwrap it "
            "from DDP or torch.compile before the export"
        )
    with _replacing(folder) as staging:
        text = _write(staging, hparams_text, branch, prefix)
        rate, dim = _check(staging, branch)
        tree = ruamel.yaml.YAML().load(resolve_references(hparams_text))
        transformers = transformers_of(branch)
        write_card(
            staging,
            os.path.basename(folder),
            notes,
            {**_describe(tree, branch, rate, dim), **(facts or {})},
            rate,
            dim,
            needs=_needs(text),
            tags=[net.model.config.model_type for net in transformers],
            base_model=_base_model(tree[prefix + "embedding_model"]),
        )
    return folder


@contextlib.contextmanager
def _replacing(folder):
    """Gives a folder to fill, which then replaces another one, or nothing."""
    parent, name = os.path.split(folder)
    staging, old = (
        os.path.join(parent, f".{name}.{kind}") for kind in ("new", "old")
    )
    for leftover in (staging, old):  # of an export that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        os.makedirs(staging)
        yield staging
        if os.path.isdir(folder):
            os.rename(folder, old)
        os.rename(staging, folder)
    except RuntimeError as error:
        if not is_disk_error(error):
            raise
        raise _no_space(
            error,
            f"The model cannot be written to {folder}",
            parent,
            "Free some space (or your quota), then repeat the command.",
        ) from error
    finally:
        for leftover in (staging, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _no_space(error, what, folder, advice):
    """The error of torch.save on a full disk, in words."""
    free = shutil.disk_usage(folder).free / 2**20
    return OSError(
        f"{what}: {' '.join(str(error).split())}. {free:.0f} MiB are free "
        f"there. {advice}"
    )


def check_export(branch: Branch, hparams_text: str, prefix: str = "") -> None:
    """Checks before training that an encoder can be exported after it.

    The weights may be any.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _write(folder, hparams_text, branch, prefix)
        except RuntimeError as error:
            if not is_disk_error(error):
                raise
            raise _no_space(
                error,
                f"The encoder cannot be written to {folder} to try its export",
                folder,
                "Free some space, or set TMPDIR to a larger folder.",
            ) from error
        _check(folder, branch)


def export_run(run_folder: str, folder: str | None = None) -> str:
    """Exports a training run again, from the checkpoints in its folder.

    As at the end of training this is the newest checkpoint, the average of the
    last ones, or the one that ``select_by`` chooses. The run's folder may have
    been moved: nothing outside of it is read, but the source of a pretrained
    transformer. ``folder`` is ``model`` in the run's folder by default, and is
    returned.
    """
    path = os.path.join(run_folder, HPARAMS_NAME)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{run_folder} is no training run: it has no {HPARAMS_NAME}"
        )
    text = read_text(path)
    # the encoder alone: the rest names data, logs and folders of the training
    branch = build_branch(text, path, sources=True)
    tree = ruamel.yaml.YAML().load(resolve_references(text))
    weights, origin = weights_of_run(
        run_folder,
        tree.get("extract_from", "encoder"),
        os.path.basename(tree.get("save_folder", "save")),
        tree.get("average_last", 1),
        tree.get("select_by"),
    )
    load_weights(branch.embedding_model, weights, run_folder)
    return export(
        branch,
        text,
        folder or os.path.join(run_folder, "model"),
        notes=f"Trained by speechbrain_ssl; exported from {origin}.",
        facts=_facts_of_run(run_folder, tree),
    )


def _facts_of_run(run_folder, tree):
    """Rows of the model card that the folder of a run tells."""
    facts = {}
    save = os.path.basename(tree.get("save_folder", "save"))
    path = os.path.join(
        run_folder, save, os.path.basename(tree.get("train_annotation") or "")
    )
    if os.path.isfile(path):
        count, hours = size_of(path)
        facts["data"] = f"{count} utterances, {hours:.1f} hours"
    if "seed" in tree:
        facts["seed"] = tree["seed"]
    labels = "none in training or selection"
    if tree.get("speakers"):
        labels = "those of a file of speakers were trained on"
    elif tree.get("select_by") == "selfcheck":
        labels += "; the self-check without labels chose the checkpoint"
    elif tree.get("select_by"):
        labels = "those of a trial list chose the checkpoint"
    return {**facts, "speaker labels": labels}


def transformers_of(branch: Branch) -> list[PretrainedTransformer]:
    """Pretrained networks of a branch."""
    return [m for m in branch.modules() if isinstance(m, PretrainedTransformer)]


def _write(folder, hparams_text, branch, prefix=""):
    """Writes YAML and weights; returns the YAML."""
    architectures = [net.architecture() for net in transformers_of(branch)]
    text = encoder_hparams(hparams_text, architectures, prefix)
    path = os.path.join(folder, HPARAMS_NAME)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    weights = branch.embedding_model.state_dict()
    weights = {key: value.detach().cpu() for key, value in weights.items()}
    torch.save(weights, os.path.join(folder, WEIGHTS_NAME))
    return text


@torch.no_grad()
def _check(folder, branch):
    """Loads the folder as a user would and compares embeddings.

    SpeechBrain's Pretrainer ignores weights whose names do not fit, so the
    names are compared as well. Returns sample rate and width of embeddings.
    """
    classifier = EncoderClassifier.from_hparams(
        source=folder, savedir=None, run_opts={"device": "cpu"}
    )
    loaded = classifier.mods.embedding_model.state_dict()
    weights = branch.embedding_model.state_dict()
    if loaded.keys() != weights.keys():
        odd = sorted(loaded.keys() ^ weights.keys())
        raise ValueError(
            "The exported hparams make another encoder than the trained one; "
            f"these weights are in one only: {', '.join(odd[:5])}"
        )
    rate = 0
    if face_size_of(classifier) is None:
        rate = classifier.audio_normalizer.sample_rate
        check_sample_rate([branch], rate)
    wavs = branch.noise(round(1.5 * rate))
    # both on the CPU: GPUs may multiply with fewer digits
    expected = copy.deepcopy(branch).cpu().eval().embed(wavs)
    found = classifier.encode_batch(wavs).flatten(1)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        worst = (found - expected).abs().max().item()
        raise ValueError(
            "The exported encoder gives other embeddings than the trained "
            f"one: they differ by up to {worst:.2e}"
        )
    return rate, found.shape[1]


def _describe(tree, branch, rate, dim):
    """Rows of the model card that the YAML and the network tell."""
    network = branch.embedding_model
    count = sum(parameter.numel() for parameter in network.parameters())
    kinds = [type(m).__name__ for m in network.children()]
    if type(network).__name__ != "LengthsCapableSequential":
        kinds = [type(network).__name__]
    objective = [
        class_of(tree.get(key)).rpartition(".")[2]
        for key in ("objective", "loss", "gate")
    ]
    return {
        "objective": ", ".join(filter(None, objective)) or "unknown",
        "encoder": f"{', '.join(kinds)}: {count:,} parameters, "
        f"embeddings of {dim} dimensions",
        **_input_of(branch, rate),
    }


def _needs(text):
    """The sentence of the card on the packages that a YAML needs."""
    if PIXELS in text:
        return NEEDS_FACES
    if "speechbrain_ssl.nnet.encoders." in text:
        return NEEDS_ENCODER
    return NEEDS_US if "speechbrain_ssl." in text else NEEDS


def _input_of(branch, rate):
    """The row of the card about what the encoder takes."""
    if not rate:
        size = branch.compute_features.size
        return {"images": f"faces of {size} x {size} pixels, RGB"}
    return {"audio": f"one channel, {rate} Hz"}


def _base_model(tree):
    """The hub's name of the network that training started from, if any.

    ``tree`` is the part of the YAML that makes the network.
    """
    sources = [
        str(node["source"])
        for node in nodes_of(tree)
        if isinstance(node, dict) and "source" in node and class_of(node)
    ]
    names = [
        source
        for source in sources
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source)
        and not os.path.exists(source)
    ]
    return names[0] if names else None


def _put_architectures(part, architectures):
    """Gives pretrained networks their architecture instead of a source."""
    nodes = [
        node
        for node in nodes_of(part)
        if isinstance(node, dict)
        and {"source", "architecture"} & node.keys()
        and class_of(node)
    ]
    if len(nodes) != len(architectures):
        raise ValueError(
            f"The hparams have {len(nodes)} pretrained networks (with a key "
            f"source or architecture), the encoder has {len(architectures)}: they do not "
            "belong together"
        )
    for node, settings in zip(nodes, architectures):
        for key in list(node):
            del node[key]
        node.update(settings)


def main(argv: list[str] | None = None) -> None:
    """The command line of ``export_run``."""
    parser = command_parser(__doc__)
    parser.add_argument("run_folder")
    parser.add_argument("--folder", help="RUN_FOLDER/model by default")
    try:
        print(export_run(**vars(parser.parse_args(argv))))
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        # the text of a KeyError has quotes around it
        text = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"export: {text}")


if __name__ == "__main__":
    main()
