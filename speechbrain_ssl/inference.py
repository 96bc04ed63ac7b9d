"""From a training run to a folder that stock SpeechBrain loads.

The folder holds ``hyperparams.yaml`` with class names of speechbrain and torch
only, ``embedding_model.ckpt`` and a README.md; ``threshold.json`` once a
threshold was found. ``EncoderClassifier`` and ``SpeakerRecognition`` load it
where this package is not installed: of classes that stock SpeechBrain lacks
(``CARRIED``) the source stands in the YAML.

Training ends with an export; to export its newest checkpoint again::

    > python -m speechbrain_ssl.inference RUN_FOLDER [--folder MODEL_FOLDER]
"""

import argparse
import copy
import importlib
import inspect
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import textwrap

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.processing.features import STFT

from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.files import write_json, write_whole

THRESHOLD_NAME = "threshold.json"
ENCODER_KEYS = ("compute_features", "mean_var_norm", "embedding_model")
KNOWN_PACKAGES = ("speechbrain.", "torch.")
# modules whose source an exported YAML carries along, under other names; they
# import nothing of this package
CARRIED = {
    "speechbrain_ssl.nnet.mhfa": "exported_mhfa",
    "speechbrain_ssl.nnet.transformer": "exported_transformer",
}
# A file beside the YAML would be the usual place. But from_hparams neither
# fetches it from a hub, nor tells the YAML which folder it is loaded from.
SOURCE = """\
__{name}: !apply:exec
-   |
{source}
    import sys
    import types

    sys.modules[__name__] = types.ModuleType(__name__)
    vars(sys.modules[__name__]).update(globals())
- {{__name__: {name}}}

"""
DEFAULT_RATE = 16000  # of recipes that have no key sample_rate
# what a compiled or a distributed wrapper puts before the names of parameters
WRAPPER_PREFIXES = ("module.", "_orig_mod.")

INTERFACE = """\
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: {rate}

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
"""

# the header is what huggingface.co shows and searches
MODEL_README = """\
---
library_name: speechbrain
tags:
- speaker-verification
- self-supervised
---

# Speaker encoder

{notes}

{facts}```python
from speechbrain.inference.speaker import SpeakerRecognition

encoder = SpeakerRecognition.from_hparams(source="{name}", savedir=None)
embedding = encoder.encode_batch(waveforms)  # {rate} Hz, [batch, time]
```

## Threshold

None was measured. SpeechBrain's default of 0.25 belongs to another model.
"""

THRESHOLD_SECTION = """\
## Threshold

{threshold:.4f} on the cosine is where both error rates are {eer:.2f} % on the
labelled list {trials}{size}. Other audio may need another threshold; where
target trials are rarer, a higher one.{known}

```python
score, same = encoder.verify_files("a.wav", "b.wav", threshold={threshold:.4f})
```
"""


def encoder_hparams(hparams_text, architectures=()):
    """Takes the lines of an encoder out of the hparams of a training run.

    Arguments
    ---------
    hparams_text : str
        Content of a recipe's hparams file, overrides already applied.
    architectures : list of dict
        What makes the pretrained networks in it without their files, in
        order: the settings of those with a ``source``.

    Returns
    -------
    str
        Content of the hparams file of a pretrained interface.

    Raises
    ------
    KeyError
        If ``compute_features``, ``mean_var_norm`` or ``embedding_model`` is
        missing.
    ValueError
        If the encoder is made of classes of other packages than speechbrain
        and torch: stock SpeechBrain could not load it; or if it has another
        number of pretrained networks than ``architectures``.
    """
    yaml = ruamel.yaml.YAML()
    yaml.indent(mapping=4, sequence=6, offset=4)
    yaml.width = 4096
    tree = yaml.load(resolve_references(hparams_text))
    missing = [key for key in ENCODER_KEYS if key not in tree]
    if missing:
        raise KeyError(
            f"The hparams file has no {', '.join(missing)}: these keys make "
            "the encoder that is exported"
        )
    # what these keys refer to has been put in their place
    part = ruamel.yaml.comments.CommentedMap(
        (key, tree[key]) for key in ENCODER_KEYS
    )
    _strip_comments(part)
    _check_packages(part)
    _put_architectures(part, architectures)
    out = io.StringIO()
    yaml.dump(part, out)
    rate = tree.get("sample_rate")
    if rate is None and isinstance(tree["compute_features"], dict):
        rate = tree["compute_features"].get("sample_rate")
    rate = DEFAULT_RATE if rate is None else rate
    return _carry(out.getvalue()) + "\n" + INTERFACE.format(rate=rate)


def check_sample_rate(modules, sample_rate):
    """Checks that an encoder is built for the sample rate of its audio.

    Arguments
    ---------
    modules : iterable of torch.nn.Module
        The encoder, its features included.
    sample_rate : int
        The rate of the audio in Hz.

    Raises
    ------
    ValueError
        If features are computed for another rate, if their FFT is shorter
        than their window, or if a pretrained transformer gets another rate
        than 16000 Hz.
    """
    for module in itertools.chain(*(module.modules() for module in modules)):
        name = type(module).__name__
        found = getattr(module, "sample_rate", sample_rate)
        if found != sample_rate:
            raise ValueError(
                f"sample_rate is {sample_rate}, but {name} is built for "
                f"{found} Hz. Give it the rate in the YAML: sample_rate: "
                "!ref <sample_rate>"
            )
        if isinstance(module, STFT) and module.n_fft < module.win_length:
            raise ValueError(
                f"At sample_rate {sample_rate} the window of {name} has "
                f"{module.win_length} samples, but n_fft is {module.n_fft}. "
                f"Set n_fft of compute_features to {module.win_length} or more."
            )


def export(
    branch, hparams_text, folder, notes="Trained without labels.", facts=None
):
    """Writes an encoder as a folder for stock SpeechBrain, and checks it.

    The folder appears when it is complete: it has been loaded by
    ``EncoderClassifier`` from there, strictly, and gives the same embeddings.

    Arguments
    ---------
    branch : speechbrain_ssl.nnet.branch.Branch
        The trained encoder; its head is left behind.
    hparams_text : str
        Content of the hparams file it was made from.
    folder : str
        Where to write; an exported folder that is there is replaced.
    notes : str
        What the folder's README says about the model.
    facts : dict of str to str
        A table for the README: data, seed, label use.

    Returns
    -------
    str
        The folder.

    Raises
    ------
    ValueError
        If weights carry the prefix of a wrapper, or the exported encoder
        gives other embeddings than the trained one.
    """
    folder = os.path.abspath(folder)
    if os.path.isdir(folder) and not _is_export(folder):
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
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    staging = tempfile.mkdtemp(prefix=".export-", dir=os.path.dirname(folder))
    try:
        _write(staging, hparams_text, branch)
        rate = _check(staging, branch)
        if _pretrained(branch):
            notes += " It needs `pip install transformers`."
        readme = MODEL_README.format(
            name=os.path.basename(folder),
            notes=notes,
            facts=_table(facts or {}),
            rate=rate,
        )
        path = os.path.join(staging, "README.md")
        with open(path, "w", encoding="utf-8") as file:
            file.write(readme)
        os.chmod(staging, 0o755)
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.rename(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return folder


def check_export(branch, hparams_text):
    """Checks before training that an encoder can be exported after it.

    Arguments
    ---------
    branch : speechbrain_ssl.nnet.branch.Branch
        The encoder, with whatever weights.
    hparams_text : str
        Content of the hparams file it was made from.

    Raises
    ------
    ValueError
        If stock SpeechBrain could not load the exported encoder, or it would
        give other embeddings.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(folder, hparams_text, branch)
        _check(folder, branch)


def export_run(run_folder, folder=None):
    """Exports the newest checkpoint of a training run.

    Arguments
    ---------
    run_folder : str
        The run's output folder, with ``hyperparams.yaml`` and checkpoints.
    folder : str
        Where to write; ``model`` in the run's folder by default.

    Returns
    -------
    str
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is no such run, or it has no checkpoint yet.
    """
    settings = os.path.join(run_folder, "hyperparams.yaml")
    if not os.path.isfile(settings):
        raise FileNotFoundError(
            f"{run_folder} is no training run: it has no hyperparams.yaml"
        )
    with open(settings, encoding="utf-8") as file:
        text = file.read()
    # a corpus's own module can be imported in the folder of its recipe only
    corpus = {"prepare": None} if re.search(r"^prepare:", text, re.M) else {}
    hparams = load_hyperpyyaml(text, corpus)
    checkpoint = hparams["checkpointer"].recover_if_possible()
    if checkpoint is None:
        raise FileNotFoundError(f"{run_folder} has no checkpoint yet")
    branch = hparams[hparams.get("extract_from", "encoder")]
    branch = getattr(branch, "network", branch)  # of a teacher
    return export(
        branch,
        text,
        folder or os.path.join(run_folder, "model"),
        notes="Trained by speechbrain_ssl; exported from its checkpoint "
        f"{os.path.basename(checkpoint.path)}.",
    )


def suggest_threshold(
    folder: str, summary: dict, trials: str, known_files: dict | None = None
) -> None:
    """Writes a decision threshold into an exported folder.

    It stands in the README and, for programs, in ``threshold.json``.

    Arguments
    ---------
    folder : str
        The exported folder.
    summary : dict
        What ``verify`` found for raw scores: ``threshold``, ``EER`` in
        percent and, if there, the numbers of ``trials`` and ``targets``.
    trials : str
        Name of the labelled list it was found on.
    known_files : dict of str to int
        Files of the list that are in the cohort or the training set.
    """
    count, size = summary.get("trials"), ""
    found = {key: float(summary[key]) for key in ("threshold", "EER")}
    found["trials"] = trials
    if "targets" in summary:
        prior = summary["targets"] / count
        found |= {"trial_count": count, "target_prior": round(prior, 6)}
        size = f" ({count} trials, {100 * prior:.3g} % of them target trials)"
    known = "".join(
        f"\n\n**{number} files of the list are in the {where} too**: the error "
        "rates are not those of unknown recordings."
        for where, number in (known_files or {}).items()
        if number
    )
    if known:
        found["known_files"] = known_files
    path = os.path.join(folder, "README.md")
    with open(path, encoding="utf-8") as file:
        text = file.read().split("## Threshold")[0]
    text += THRESHOLD_SECTION.format(
        threshold=found["threshold"],
        eer=found["EER"],
        trials=trials,
        size=size,
        known=known,
    )
    with write_whole(path) as file:
        file.write(text)
    write_json(os.path.join(folder, THRESHOLD_NAME), found)


def read_threshold(folder):
    """The threshold that ``suggest_threshold`` wrote.

    Arguments
    ---------
    folder : str
        An exported folder.

    Returns
    -------
    dict
        ``threshold`` on the cosine, ``EER`` in percent and ``trials``, the
        name of the labelled list it was found on; also ``trial_count`` and
        ``target_prior``, the share of target trials. None if there is none.

    Raises
    ------
    ValueError
        If the file is no such JSON.
    """
    path = os.path.join(folder, THRESHOLD_NAME)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return {**found, "threshold": float(found["threshold"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} should hold a number as "threshold", but: {error!r}. '
            "Delete it, or verify the model again."
        ) from error


def load_encoder(folder, device="cpu"):
    """Loads an exported folder with stock SpeechBrain.

    Arguments
    ---------
    folder : str
        An exported folder.
    device : str
        Where to put the encoder.

    Returns
    -------
    EncoderClassifier
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it is not an exported one.
    """
    _check_export(folder)
    classifier = EncoderClassifier.from_hparams(
        source=os.path.abspath(folder),
        savedir=None,
        run_opts={"device": str(device)},
    )
    classifier.eval()
    return classifier


def start_from(branch, source):
    """Gives an encoder the weights of an earlier training, all of them.

    Arguments
    ---------
    branch : speechbrain_ssl.nnet.branch.Branch
        Whose ``embedding_model`` gets the weights.
    source : str
        An exported folder, or a file of a checkpoint: ``student.ckpt``,
        ``teacher.ckpt`` or ``encoder.ckpt``.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file.
    ValueError
        If names or shapes of its weights are not those of the encoder.
    """
    path = source
    if os.path.isdir(source):
        _check_export(source)
        path = os.path.join(source, "embedding_model.ckpt")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no model {source} to start from.")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    part = "embedding_model."
    # a branch has its encoder under that name, a teacher has a branch
    kept = {k.split(part, 1)[1]: v for k, v in weights.items() if part in k}
    try:
        branch.embedding_model.load_state_dict(kept or weights)
    except RuntimeError as error:
        raise ValueError(
            f"The weights of {source} are not of this encoder. Give the YAML "
            f"the encoder they were trained in. {error}"
        ) from error


def continue_run(encoder, classifier, run_folder):
    """Takes over encoder and classifier from a run on pseudo-labels.

    Arguments
    ---------
    encoder : speechbrain_ssl.nnet.branch.Branch
        Gets the run's encoder, all of it.
    classifier : torch.nn.Module
        Gets the run's classifier.
    run_folder : str
        The run's output folder: its newest checkpoint counts.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint.
    ValueError
        If names or shapes of the weights are others.
    """
    folder = os.path.join(run_folder, "save")
    checkpoint = None
    if os.path.isdir(folder):
        checkpoint = AtomicCheckpointer(folder).find_checkpoint()
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run_folder} has no checkpoint in save/ to continue from"
        )
    for name, module in {"encoder": encoder, "classifier": classifier}.items():
        path = os.path.join(checkpoint.path, f"{name}.ckpt")
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{checkpoint.path} has no {name}.ckpt: name the folder of a "
                "run of train_pseudo_labels.py"
            )
        weights = torch.load(path, map_location="cpu", weights_only=True)
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"The {name} of {run_folder} is another one. Give the YAML "
                f"the {name} of that run. {error}"
            ) from error


def _check_export(folder):
    """Says what is wrong with a folder that is no exported one."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"No such model folder: {folder}")
    if not _is_export(folder):
        inner = os.path.join(folder, "model")
        hint = f" Did you mean {inner}?" if _is_export(inner) else ""
        raise FileNotFoundError(
            f"{folder} is not an exported model: it needs hyperparams.yaml "
            f"and embedding_model.ckpt.{hint}"
        )


def _is_export(folder):
    """Whether a folder looks like one that ``export`` wrote."""
    names = ("hyperparams.yaml", "embedding_model.ckpt")
    return all(os.path.isfile(os.path.join(folder, n)) for n in names)


def _table(facts):
    """Facts as a table of Markdown."""
    if not facts:
        return ""
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    return f"| | |\n|---|---|\n{rows}\n"


def _pretrained(branch):
    """Networks of a branch that came from Hugging Face."""
    return [m for m in branch.modules() if hasattr(m, "architecture")]


def _write(folder, hparams_text, branch):
    """Writes hparams and weights."""
    architectures = [m.architecture() for m in _pretrained(branch)]
    path = os.path.join(folder, "hyperparams.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(encoder_hparams(hparams_text, architectures))
    weights = branch.embedding_model.state_dict()
    weights = {key: value.detach().cpu() for key, value in weights.items()}
    torch.save(weights, os.path.join(folder, "embedding_model.ckpt"))


@torch.no_grad()
def _check(folder, branch):
    """Loads the folder as a user would and compares embeddings.

    SpeechBrain's Pretrainer ignores weights whose names do not fit, so the
    names are compared as well. Returns the sample rate of the interface.
    """
    classifier = load_encoder(folder)
    loaded = classifier.mods.embedding_model.state_dict()
    weights = branch.embedding_model.state_dict()
    if loaded.keys() != weights.keys():
        odd = sorted(loaded.keys() ^ weights.keys())
        raise ValueError(
            "The exported hparams make another encoder than the trained one; "
            f"these weights are in one only: {', '.join(odd[:5])}"
        )
    rate = classifier.audio_normalizer.sample_rate
    check_sample_rate([branch], rate)
    generator = torch.Generator().manual_seed(0)
    wavs = torch.randn(2, round(1.5 * rate), generator=generator)
    # both on the CPU: GPUs may multiply with fewer digits
    expected = copy.deepcopy(branch).cpu().eval().embed(wavs / 10)
    found = classifier.encode_batch(wavs / 10).flatten(1)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        worst = (found - expected).abs().max().item()
        raise ValueError(
            "The exported encoder gives other embeddings than the trained "
            f"one: they differ by up to {worst:.2e}"
        )
    return rate


def _nodes(node):
    """A node of a YAML tree and all below it."""
    yield node
    children = ()
    if isinstance(node, dict):
        children = node.values()
    elif isinstance(node, list):
        children = node
    for child in children:
        yield from _nodes(child)


def _class_of(node):
    """Name of what a node of a YAML tree makes; empty if it is plain."""
    tag = str(getattr(getattr(node, "tag", None), "value", "") or "")
    return tag.partition(":")[2]


def _check_packages(part):
    """Refuses classes that a stock installation does not have."""
    for key, value in part.items():
        for node in _nodes(value):
            name = _class_of(node)
            if name and name.rpartition(".")[0] not in CARRIED:
                if not name.startswith(KNOWN_PACKAGES):
                    raise ValueError(
                        f"{key} uses {name}. An exported model may only use "
                        "classes of speechbrain and torch, so that it loads "
                        "where nothing else is installed."
                    )


def _put_architectures(part, architectures):
    """Gives pretrained networks their architecture instead of a source."""
    nodes = [
        node
        for node in _nodes(part)
        if isinstance(node, dict) and "source" in node and _class_of(node)
    ]
    if len(nodes) != len(architectures):
        raise ValueError(
            f"The hparams have {len(nodes)} pretrained networks (with a key "
            f"source), the encoder has {len(architectures)}: they do not "
            "belong together"
        )
    for node, settings in zip(nodes, architectures):
        for key in list(node):
            del node[key]
        node.update(settings)


def _carry(text):
    """Puts the sources of CARRIED modules before a YAML that uses them."""
    sources = ""
    for module, name in CARRIED.items():
        used = re.subn(rf"(!\w+:){re.escape(module)}\.", rf"\1{name}.", text)
        if not used[1]:
            continue
        text = used[0]
        source = inspect.getsource(importlib.import_module(module))
        sources += SOURCE.format(
            name=name, source=textwrap.indent(source, 4 * " ")
        )
    return sources + text


def _strip_comments(tree):
    """Removes comments, which speak of the training recipe."""
    for node in _nodes(tree):
        if hasattr(node, "ca"):
            node.ca.comment = None
            node.ca.items.clear()


def main(argv=None):
    """The command line of ``export_run``.

    Arguments
    ---------
    argv : list of str
        ``sys.argv[1:]`` by default.
    """
    parser = argparse.ArgumentParser(description=export_run.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run_folder")
    parser.add_argument("--folder")
    print(export_run(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
