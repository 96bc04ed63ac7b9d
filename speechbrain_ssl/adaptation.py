"""Adapts a trained encoder to unlabelled audio: its start, choice and result.

``recipes/AudioFolder/Adapt/adapt.py`` runs the stages; this module knows the
kinds of sources, writes the YAML of their training, and decides which model is
kept. No label is read here: models are compared by the self-check on audio that
is kept out of training.
"""

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ssl import hub, safe_yaml, shipped
from speechbrain_ssl.card import CARD_NAME, read_card
from speechbrain_ssl.exporting import export, transformers_of
from speechbrain_ssl.files import hash_of, read_json, read_text
from speechbrain_ssl.loading import (
    ENCODER_KEYS,
    HPARAMS_NAME,
    WEIGHTS_NAME,
    build_branch,
    is_export,
    load_encoder,
)
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.onnx_encoder import is_onnx

ENCODER, TRANSFORMER, RANDOM = "encoder", "transformer", "random weights"
# figure of the self-check that compares models; less is better
MEASURE = "cross_entropy"
# a model is no better if its embeddings fill less than this share of the
# dimensions that those of the source fill
LEAST_RANK = 0.5


class Source(NamedTuple):
    """The model that an adaptation starts from.

    ``kind`` is ENCODER, a folder with an encoder; TRANSFORMER, one in Hugging
    Face's format, without a pooling; or RANDOM, a YAML of an encoder. ``path``
    is the folder or file, and ``name`` that of the model card: the name on the
    hub, or of the folder. ``commit`` is that on the hub, None for a local path;
    ``license`` is None if the card of the source states none.
    """

    kind: str
    path: str
    name: str
    commit: str | None
    license: str | None

    @property
    def base_model(self) -> str | None:
        """Its name on the hub, if it is there."""
        return self.name if self.commit else None


def find_source(
    source: str, revision: str | None = None, offline: bool = False
) -> Source:
    """Finds a model, and says what kind it is.

    ``source`` is a folder, the YAML of an encoder or its name in ``hparams``,
    or a name on the Hugging Face hub; ``revision`` and ``offline`` are as for
    ``hub.fetch``. A model that cannot be trained is an error.
    """
    if is_onnx(source):
        raise ValueError(
            f"{source} is an ONNX file, which has no gradients: it cannot be "
            "trained. Give it as --teacher, which makes the labels of the "
            "first round, and an encoder that can be trained as source: a "
            "SpeechBrain folder, or random weights such as ecapa_c512."
        )
    source = shipped.encoder_file(source)
    path, name, commit = hub.fetch(source, revision, offline)
    if os.path.isfile(path) and path.endswith((".yaml", ".yml")):
        return Source(RANDOM, path, os.path.basename(path), None, None)
    if not os.path.isdir(path):
        raise FileNotFoundError(f"There is no model {source}.")
    if is_export(path):
        kind = ENCODER
    elif os.path.isfile(os.path.join(path, "config.json")):
        kind = TRANSFORMER
    else:
        inner = os.path.join(path, "model")
        hint = f" Did you mean {inner}?" if is_export(inner) else ""
        raise FileNotFoundError(
            f"{source} is no model: expected {HPARAMS_NAME} and {WEIGHTS_NAME} "
            "(SpeechBrain), or config.json and weights (transformers); found "
            f"{', '.join(sorted(os.listdir(path))[:8]) or 'nothing'}.{hint}"
        )
    name = name or os.path.basename(os.path.abspath(path))
    return Source(kind, path, name, commit, _license(path))


def _license(folder):
    """The license that a model card states, or None."""
    if not os.path.isfile(os.path.join(folder, CARD_NAME)):
        return None
    try:
        data: Any = read_card(folder).data
    except (OSError, ValueError):  # a foreign text: its license is unknown
        return None
    return data.license


def source_hash(source: Source) -> str:
    """Commit of a source on the hub, or a hash of the files that are read."""
    if source.kind == RANDOM:
        return f"SHA-256 {hash_of(source.path)}"
    if source.commit is not None:
        return f"commit {source.commit}"
    names = (HPARAMS_NAME, WEIGHTS_NAME)
    if source.kind == TRANSFORMER:
        names = [
            name
            for name in sorted(os.listdir(source.path))
            if name.endswith((".json", ".safetensors", ".bin"))
        ]
    paths = [os.path.join(source.path, name) for name in names]
    return f"SHA-256 {hash_of(*paths)}"


def transformer_sizes(folder: str) -> dict[str, int]:
    """``layers`` (number of hidden states) and ``width`` of a transformer.

    They are for MHFA, and from a folder in Hugging Face's format.
    """
    path = os.path.join(folder, "config.json")
    config = read_json(path)
    try:
        return {
            "layers": int(config["num_hidden_layers"]) + 1,
            "width": int(config["hidden_size"]),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} should have num_hidden_layers and hidden_size, but: "
            f"{error!r}"
        ) from error


def write_start(
    source: Source,
    folder: str,
    trained: Sequence[str] = ("encoder.layers",),
    lora: Mapping[str, float] | None = None,
    trust: Sequence[str] = (),
    seed: int = 1,
) -> None:
    """Writes a source as an exported folder that training can start from.

    The source is of the kind ENCODER or RANDOM, with weights of a ``seed``.
    ``trained`` are parts of a transformer that will learn, ``lora`` has
    ``rank`` and ``alpha`` of adapters of these parts (None: none), and
    ``trust`` is that of ``load_encoder``.
    """
    rate = None
    torch.manual_seed(seed)  # of random weights, and of those of adapters
    if source.kind == RANDOM:
        text = read_text(source.path)
        safe_yaml.check(text, source.path, trust)
        branch = build_branch(text, source.path, trust)
    else:
        text = read_text(os.path.join(source.path, HPARAMS_NAME))
        encoder: Any = load_encoder(source.path, trust=trust)
        rate = encoder.audio_normalizer.sample_rate
        branch = branch_of(encoder)
    transformers = transformers_of(branch)
    if lora and not transformers:
        raise ValueError(
            f"lora is {lora}, but {source.name} has no transformer. Set its "
            "rank to 0: all weights of other encoders are trained."
        )
    for part in transformers:
        part.choose(trained, lora)
    notes = f"A copy of {source.name}, not trained further."
    export(branch, text, folder, notes, {"objective": "that of the source"})
    found = load_encoder(folder).audio_normalizer.sample_rate
    if rate not in (None, found):
        raise ValueError(
            f"{source.path} is for audio at {rate} Hz, but its features do not "
            f"say so: expected sample_rate: {rate} in compute_features of "
            f"{HPARAMS_NAME}"
        )


def branch_of(encoder: EncoderClassifier) -> Branch:
    """Features, normalization and network of a loaded folder."""
    return Branch(*(encoder.mods[key] for key in ENCODER_KEYS))


def training_yaml(template: str, model_folder: str) -> str:
    """The YAML of a training whose encoder is that of an exported folder.

    ``template`` is the text of a YAML of train_pseudo_labels.py; the result has
    the model's ``sample_rate``, ``emb_dim``, ``compute_features``,
    ``mean_var_norm`` and ``embedding_model``.
    """
    encoder = load_encoder(model_folder)
    rate = encoder.audio_normalizer.sample_rate
    dim = encoder.encode_batch(torch.randn(1, rate)).shape[-1]
    text = read_text(os.path.join(model_folder, HPARAMS_NAME))
    blocks = {"sample_rate": f"sample_rate: {rate}\n"}
    blocks["emb_dim"] = f"emb_dim: {dim}\n"
    for key in ENCODER_KEYS:
        blocks[key] = _block(key).search(text).group()
    for key, block in blocks.items():
        template, count = _block(key).subn(lambda _: block, template)
        if count != 1:
            raise ValueError(
                f"The YAML of the training should have a key {key}, found "
                f"{count}"
            )
    return template


def _block(key):
    """A top-level key of a YAML with all lines below it."""
    return re.compile(rf"^{key}:.*\n(?:[ \t]+.*\n)*", re.MULTILINE)


def split_rows(
    csv_path: str, held_out: Sequence[bool]
) -> tuple[list[dict], list[dict]]:
    """Rows of a training CSV to train on, and rows that are kept out.

    ``held_out`` says whether a row is kept out.
    """
    with open(csv_path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    train = [row for row, out in zip(rows, held_out) if not out]
    return train, [row for row, out in zip(rows, held_out) if out]


class Choice(NamedTuple):
    """The model that is kept, and whether to go on.

    ``best`` is the number of the round, 0 the source; ``stop`` says whether the
    last round did not improve; ``reason`` is in words, with figures.
    """

    best: int
    stop: bool
    reason: str


def choose(checks: Sequence[Mapping[str, Any]], min_gain: float) -> Choice:
    """Compares models by their self-checks.

    ``checks`` are results of ``SelfCheck``: of the source, then of each round.
    ``min_gain`` is the smallest decrease of the cross-entropy, in bits, that is
    an improvement.

    Example
    -------
    >>> def check(bits):
    ...     return {"cross_entropy": bits, "EER": 10.0, "effective_rank": 50.0}
    >>> choose([check(0.5), check(0.4), check(0.45)], min_gain=0.01)[:2]
    (1, True)
    >>> choose([check(0.5), check(0.5)], min_gain=0.01)[:2]
    (0, True)
    """
    best = 0
    for number in range(1, len(checks)):
        gain = checks[best][MEASURE] - checks[number][MEASURE]
        rank = checks[number]["effective_rank"]
        is_full = rank >= LEAST_RANK * checks[0]["effective_rank"]
        if math.isfinite(gain) and gain > min_gain and is_full:
            best = number
    last = len(checks) - 1
    figures = ", ".join(
        f"{'source' if n == 0 else f'round {n}'} {found[MEASURE]:.3f} bits "
        f"(EER {found['EER']:.1f} %, effective rank "
        f"{found['effective_rank']:.0f})"
        for n, found in enumerate(checks)
    )
    if best:
        verdict = f"Round {best} is the best by the self-check without labels"
    else:
        verdict = (
            "No round is better than the source by the self-check without "
            "labels: the source is kept"
        )
    return Choice(best, best < last, f"{verdict}: {figures}.")


def write_mean(
    model_folder: str, start_folder: str, share: float, folder: str
) -> None:
    """Exports the mean of the weights of a model and of its start.

    ``share`` is that of the start, from 0 to 1 (WiSE-FT: M. Wortsman et al.,
    "Robust fine-tuning of zero-shot models", CVPR 2022,
    https://arxiv.org/abs/2109.01903). Integers are those of the model.
    """
    text = read_text(os.path.join(model_folder, HPARAMS_NAME))
    branch, start = (
        branch_of(load_encoder(path)) for path in (model_folder, start_folder)
    )
    with torch.no_grad():
        before = start.state_dict()
        for name, weight in branch.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(before[name], share)
    export(branch, text, folder)


def write_result(
    model_folder: str, folder: str, notes: str, facts: Mapping[str, Any]
) -> None:
    """Writes the chosen model, with notes and facts of its card."""
    text = read_text(os.path.join(model_folder, HPARAMS_NAME))
    encoder: Any = load_encoder(model_folder)
    export(branch_of(encoder), text, folder, notes, facts)
