"""Encoders from exported folders, checkpoints and runs.

Model folders may come from others: their YAML is checked before anything in it
runs, and weights are read as tensors only.
"""

import argparse
import os
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.processing.features import STFT
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_ssl import hub, safe_yaml
from speechbrain_ssl.checkpoints import AtomicCheckpointer, average_of_last
from speechbrain_ssl.dataio.audio import RATES
from speechbrain_ssl.dataio.faces import try_faces
from speechbrain_ssl.devices import check_device
from speechbrain_ssl.files import read_text
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.face import Pixels
from speechbrain_ssl.nnet.onnx_encoder import OnnxEncoder, is_onnx

HPARAMS_NAME, WEIGHTS_NAME = "hyperparams.yaml", "embedding_model.ckpt"
ENCODER_KEYS = ("compute_features", "mean_var_norm", "embedding_model")


def load_encoder(
    folder: str, device: str = "cpu", trust: Sequence[str] = ()
) -> EncoderClassifier | OnnxEncoder:
    """Loads an exported folder, or a SpeechBrain folder of a speaker encoder.

    The result is that of ``EncoderClassifier.from_hparams``, which would run
    whatever code the folder's YAML names and fetch files from other places, in
    evaluation mode. It is an ``OnnxEncoder`` for an ONNX file.

    ``folder`` is the folder, from which all files are taken; its name on the
    Hugging Face hub, ``user/name`` or ``user/name@revision``; or an ONNX file.
    ``trust`` has modules or classes that its YAML may name beside those of
    ``safe_yaml``.
    """
    check_device(device)
    if is_onnx(folder):
        return OnnxEncoder(folder, device)
    folder = hub.local_folder(folder)
    check_folder(folder)
    trust = [trust] if isinstance(trust, str) else list(trust or ())
    path = os.path.join(folder, HPARAMS_NAME)
    text = read_text(path)
    safe_yaml.check(text, path, trust)
    keys = [("modules", key) for key in ENCODER_KEYS]
    *parts, normalizer, pretrainer = safe_yaml.build(
        text, path, [*keys, ("audio_normalizer",), ("pretrainer",)], trust
    )
    modules = dict(zip(ENCODER_KEYS, parts))
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Module):
            raise ValueError(
                f"{path} should have a network as {name} below modules, found "
                f"{module!r}"
            )
    load_weights(
        modules["embedding_model"],
        read_weights(os.path.join(folder, WEIGHTS_NAME)),
        folder,
    )
    if isinstance(pretrainer, Pretrainer):
        _load_statistics(folder, modules, pretrainer.loadables)
    normalizer = normalizer or AudioNormalizer()
    rate = getattr(normalizer, "sample_rate", None)
    if type(rate) is not int or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(
            f"{path}: expected an audio_normalizer with a whole sample_rate "
            f"from {RATES[0]} to {RATES[1]} Hz, found {rate!r}"
        )
    try:
        check_sample_rate(modules.values(), rate)
    except ValueError as error:
        raise ValueError(f"{path}: the audio_normalizer's {error}") from error
    hparams = {"audio_normalizer": normalizer}
    classifier = EncoderClassifier(
        modules=modules, hparams=hparams, run_opts={"device": str(device)}
    )
    return classifier.eval()


def face_size_of(encoder: EncoderClassifier) -> int | None:
    """Height and width of the images of a face encoder; None for voices."""
    if isinstance(encoder, OnnxEncoder):
        return None
    features = encoder.mods.compute_features
    return features.size if isinstance(features, Pixels) else None


def embed_faces(
    folder: str, faces: Sequence[str], device: str = "cpu"
) -> torch.Tensor:
    """Embeds faces with an exported face encoder [faces, emb_dim].

    Faces are images, folders of images of one face, or videos, cropped to the
    face. One that cannot be read is a FaceError.
    """
    encoder = load_encoder(folder, device)
    size = face_size_of(encoder)
    if size is None:
        raise ValueError(
            f"{folder} is a voice encoder. Name a folder of a face encoder."
        )
    found = try_faces(encoder.encode_batch, faces, size, device)
    for error in found.failed.values():
        raise error
    return found.rows


def _load_statistics(folder, modules, loadables):
    """Loads what features and normalization have learned, where they have."""
    learned = {
        name: found
        for name, found in loadables.items()
        if any(
            found is modules[key]
            for key in ("compute_features", "mean_var_norm")
        )
    }
    # a Pretrainer of our own: that of the folder may name other places
    pretrainer = Pretrainer(loadables=learned)
    pretrainer.collect_files(default_source=os.path.abspath(folder))
    if learned:
        pretrainer.load_collected()


def start_from(branch: torch.nn.Module, source: str) -> None:
    """Gives an encoder the weights of an earlier training, all of them.

    ``branch.embedding_model`` gets the weights of ``source``: an exported
    folder, its name on the Hugging Face hub, or a file of a checkpoint
    (``student.ckpt``, ``teacher.ckpt`` or ``encoder.ckpt``).
    """
    if is_onnx(source):
        raise ValueError(
            f"{source} is an ONNX file, which cannot be trained. It can be the "
            "teacher of another encoder: cluster its embeddings (model_folder "
            "of make_pseudo_labels.py)."
        )
    path = source = hub.local_folder(source)
    if os.path.isdir(source):
        check_folder(source)
        path = os.path.join(source, WEIGHTS_NAME)
        _check_same_rate(branch, os.path.join(source, HPARAMS_NAME))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no model {source} to start from.")
    encoder: Any = branch.embedding_model
    weights = encoder_part(read_weights(path))
    load_weights(encoder, weights, source)


def _check_same_rate(branch, path):
    """Refuses a model whose audio has another rate than an encoder's."""
    (normalizer,) = safe_yaml.build(
        read_text(path), path, [("audio_normalizer",)]
    )
    rate = (normalizer or AudioNormalizer()).sample_rate
    try:
        check_sample_rate([branch], rate)
    except ValueError as error:
        raise ValueError(
            f"The model of {path} is for audio at {rate} Hz: {error}"
        ) from error


def check_sample_rate(
    modules: Iterable[torch.nn.Module], sample_rate: int
) -> None:
    """Checks that an encoder is built for the sample rate of its audio.

    Features must be computed for the rate, with an FFT that is not shorter than
    their window; pretrained transformers need 16000 Hz.
    """
    for module in modules:
        for part in module.modules():
            name = type(part).__name__
            found = getattr(part, "sample_rate", sample_rate)
            if found != sample_rate:
                raise ValueError(
                    f"sample_rate is {sample_rate}, but {name} is built for "
                    f"{found} Hz. Give it the rate in the YAML: sample_rate: "
                    "!ref <sample_rate>"
                )
            if isinstance(part, STFT) and part.n_fft < part.win_length:
                raise ValueError(
                    f"At sample_rate {sample_rate} the window of {name} has "
                    f"{part.win_length} samples, but n_fft is {part.n_fft}. "
                    f"Set n_fft of compute_features to {part.win_length} or "
                    "more."
                )


def continue_run(
    encoder: torch.nn.Module, classifier: torch.nn.Module, run_folder: str
) -> None:
    """Takes over encoder and classifier from a run on pseudo-labels.

    They are those of the run's newest checkpoint.
    """
    checkpointer = _checkpoints(run_folder)
    checkpoint = checkpointer.find_checkpoint()
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run_folder} has no checkpoint in save/ to continue from"
        )
    for name, module in {"encoder": encoder, "classifier": classifier}.items():
        if name not in checkpoint.paramfiles:
            raise FileNotFoundError(
                f"{checkpoint.path} has no {name}.ckpt: name the folder of a "
                "run of train_pseudo_labels.py"
            )
        weights = read_weights(checkpoint.paramfiles[name])
        load_weights(module, weights, run_folder, name)


def weights_of_run(
    run_folder: str,
    name: str,
    save: str = "save",
    average_last: int = 1,
    select_by: str | None = None,
) -> tuple[dict[str, torch.Tensor], str]:
    """The weights that the export of a run takes, and a text of their origin.

    ``name`` is the branch in the checkpoints: student, teacher or encoder.
    ``average_last`` end-of-epoch checkpoints are averaged; ``select_by`` is a
    figure whose least value chooses a checkpoint, None the newest one.
    """
    checkpointer = _checkpoints(run_folder, save)
    checkpoint = checkpointer.find_checkpoint(
        min_key=select_by,
        ckpt_predicate=lambda c: name in c.paramfiles
        and (not select_by or select_by in c.meta),
    )
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run_folder} has no checkpoint yet with a {name}"
        )
    complete = any(
        c.meta["end-of-epoch"] for c in checkpointer.list_checkpoints()
    )
    if average_last > 1 and complete:
        weights = average_of_last(checkpointer, name, average_last)
        origin = f"the average of its last {average_last} checkpoints"
    else:
        weights = read_weights(checkpoint.paramfiles[name])
        origin = f"its checkpoint {os.path.basename(checkpoint.path)}"
    return encoder_part(weights), origin


def _checkpoints(run_folder, save="save"):
    """The checkpoints of a run, wherever its folder is now."""
    folder = os.path.join(run_folder, save)
    if not os.path.isdir(folder):  # a checkpointer would make it
        raise FileNotFoundError(
            f"{run_folder} has no checkpoint in {save}/: there is no such "
            "folder"
        )
    return AtomicCheckpointer(folder)


def encoder_part(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a branch or of a teacher that belong to the network."""
    part = "embedding_model."
    # a branch has its network under that name, a teacher has a branch; of a
    # ClipBranch the encoder of voices is meant
    places = [(k.partition(part), v) for k, v in weights.items() if part in k]
    found = {
        name: value
        for (place, _, name), value in places
        if "face." not in place
    }
    return found or weights


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """Reads a file of weights to the CPU, and nothing that could run."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to run the code of such a file
        raise ValueError(
            f"{path} should hold named tensors only. It holds other objects, "
            "which could run code when they are read, or is damaged."
        ) from error
    except Exception as error:  # of zip files and torch
        # of a file that is cut off, torch says "Invalid argument"
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(
            f"{path} holds no weights, or is damaged: "
            f"{type(error).__name__}: {error}".split("\n")[0]
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise ValueError(f"{path} should hold named tensors only")
    return weights


def load_weights(
    module: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    source: str,
    name: str = "encoder",
) -> None:
    """Loads weights into a network that must have exactly these.

    ``source`` and ``name`` say in the message where the weights come from and
    what the network is.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"The weights of {source} are not of this {name}. Give the YAML "
            f"the {name} they were trained in. {error}"
        ) from error


def build_branch(
    text: str, path: str, trust: Sequence[str] = (), sources: bool = False
) -> Branch:
    """Builds the encoder of a YAML, whose path is for messages.

    ``trust`` and ``sources`` are as for ``safe_yaml.build``.
    """
    keys = [(key,) for key in ENCODER_KEYS]
    parts = safe_yaml.build(text, path, keys, trust, sources)
    missing = [k for k, part in zip(ENCODER_KEYS, parts) if part is None]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return Branch(*parts)


def is_export(folder: str) -> bool:
    """Whether a folder has the files of an exported model."""
    names = (HPARAMS_NAME, WEIGHTS_NAME)
    return all(os.path.isfile(os.path.join(folder, n)) for n in names)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust NAME`` of commands that load model folders."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help="module or class that the model's hyperparams.yaml may name",
    )


def check_folder(folder: str) -> None:
    """Refuses a folder that is not an exported model.

    The message names missing files, and a folder inside of it that is a model.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"No such model folder: {folder}")
    if not is_export(folder):
        inner = os.path.join(folder, "model")
        hint = f" Did you mean {inner}?" if is_export(inner) else ""
        raise FileNotFoundError(
            f"{folder} is not an exported model: it needs {HPARAMS_NAME} "
            f"and {WEIGHTS_NAME}.{hint}"
        )
