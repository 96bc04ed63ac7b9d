"""Makes the tiny data that the rows of AudioFolder.csv and VoxCeleb.csv use.

Each row names this file in its column ``test_download``, so that SpeechBrain's
``run_recipe_tests`` runs it first. Everything goes to ``tests/tmp/ssl`` below
the current folder; if it is complete there, nothing is done.
"""

import pathlib
import shutil

import numpy as np
import soundfile
import torch
import transformers
from hyperpyyaml import load_hyperpyyaml
from PIL import Image
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization

from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.exporting import export
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.face import FaceResNet, PixelNorm, Pixels
from speechbrain_ssl.pseudo_labels.labels import (
    note_labels,
    read_labels,
    write_labels,
)

ROOT = pathlib.Path(__file__).parents[3]
FOLDER = pathlib.Path("tests/tmp/ssl")
SPEAKERS, TAKES = 4, 3
ENCODER = """\
compute_features: !new:speechbrain.lobes.features.Fbank
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 40
    channels: [8, 8, 8, 8, 24]
    lin_neurons: 6
"""
FACE_ENCODER = """\
compute_features: !new:speechbrain_ssl.nnet.face.Pixels {size: 32}
mean_var_norm: !new:speechbrain_ssl.nnet.face.PixelNorm {}
embedding_model: !new:speechbrain_ssl.nnet.face.FaceResNet {emb_dim: 6, depth: 10}
"""
# the runs that train_lmft.yaml continues from: hparams file, and the sizes
# of its modules, which are also in the rows of train_lmft.yaml; labels
RUNS = {
    "AudioFolder": (
        "train_dlg_lc.yaml",
        {"emb_dim": 16, "embedding_model": {"channels": [8, 8, 8, 8, 24]}},
        "labels",
    ),
    "VoxCeleb": (
        "train_wavlm_mhfa.yaml",
        {
            "emb_dim": 16,
            "pooling": {"layers": 3, "width": 32, "heads": 4, "compression": 8},
        },
        "vox2_labels",
    ),
}
VOXCELEB = {
    "vox2": [f"dev/wav/id0001{n}" for n in (2, 4, 5, 6)],
    "vox1": [f"wav/id1027{n}" for n in (0, 1)],
}
VIDEOS = ("5r0dWxy17C8", "_z_BR0ERa9g")
# of each video: 40 utterances to train on, and two of each test speaker
UTTERANCES = {"vox2": 5, "vox1": 1}


def make_samples(folder: pathlib.Path) -> None:
    """Makes audio, lists, labels and models.

    Arguments
    ---------
    folder : pathlib.Path
        Where to.
    """
    rng = np.random.default_rng(0)
    write_audio(folder, rng)
    write_faces(folder)
    write_more_audio(folder, np.random.default_rng(1))
    write_voxceleb(folder, rng)
    write_pseudo_labels(folder)
    write_wavlm(folder / "wavlm")
    for dataset, settings in RUNS.items():
        write_run(folder, dataset, *settings)
    torch.manual_seed(0)
    encoder = ECAPA_TDNN(40, channels=[8] * 4 + [24], lin_neurons=6)
    norm = InputNormalization(norm_type="sentence", std_norm=False)
    branch = Branch(Fbank(), norm, encoder)
    export(branch, ENCODER, str(folder / "model"))
    (folder / "encoder.yaml").write_text(f"emb_dim: 6\n{ENCODER}")
    face = Branch(Pixels(32), PixelNorm(), FaceResNet(6, depth=10))
    export(face, FACE_ENCODER, str(folder / "face_model"))


def write_audio(folder, rng):
    """Noise of four 'speakers' and a trial list."""
    lines = []
    for speaker in range(SPEAKERS):
        place = folder / "audio" / f"s{speaker}"
        place.mkdir(parents=True)
        for take in range(TAKES):
            noise = 0.1 * rng.standard_normal(24000)
            soundfile.write(place / f"{take}.flac", noise, 16000)
        mine, other = f"audio/s{speaker}", f"audio/s{(speaker + 1) % SPEAKERS}"
        lines += [f"1 {mine}/0.flac {mine}/1.flac"]
        lines += [f"0 {mine}/0.flac {other}/2.flac"]
    (folder / "trials").mkdir()
    (folder / "trials" / "list.txt").write_text("\n".join(lines) + "\n")


def write_faces(folder):
    """The audio with an image beside each file but one of each speaker."""
    rng = np.random.default_rng(1)
    for path in sorted((folder / "audio").glob("*/*.flac")):
        place = folder / "av" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        if path.stem != "2":
            pixels = rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{path.stem}.png")
    text = (folder / "trials" / "list.txt").read_text()
    (folder / "av" / "list.txt").write_text(
        text.replace("audio/", "").replace("/2.", "/1.")
    )
    rows = [
        {
            "ID": f"s{s}/{n}.flac",
            "duration": 1.5,
            "wav": f"$data_root/s{s}/{n}.flac",
            "start": 0,
            "stop": 24000,
            "face": "" if n == 2 else f"$data_root/s{s}/{n}.png",
        }
        for s in range(SPEAKERS)
        for n in range(TAKES)
    ]
    write_annotation(folder / "av.csv", rows, extra=("face",))
    utterances = read_annotation(
        folder / "av.csv", folder / "av", extra=("face",)
    )
    ids = list(utterances.ids())
    labels = [row % SPEAKERS for row in range(len(ids))]
    write_labels(folder / "av_labels", utterances, ids, labels, "none")


def write_more_audio(folder, rng):
    """Enough noise to keep twenty files of it out of training."""
    (folder / "more_audio").mkdir()
    for number in range(40):
        noise = 0.1 * rng.standard_normal(19200)
        soundfile.write(folder / f"more_audio/{number}.flac", noise, 16000)


def write_voxceleb(folder, rng):
    """Folders as VoxCeleb unpacks them, labels of videos, and trial lists."""
    for corpus, speakers in VOXCELEB.items():
        for speaker in speakers:
            for video in VIDEOS:
                place = folder / corpus / speaker / video
                place.mkdir(parents=True)
                for number in range(1, UTTERANCES[corpus] + 1):
                    noise = 0.1 * rng.standard_normal(16000)
                    path = place / f"{number:05d}.wav"
                    soundfile.write(path, noise, 16000)
                    face = folder / f"{corpus}_faces" / speaker / video
                    face.mkdir(parents=True, exist_ok=True)
                    pixels = (127 + 128 * noise[:1200]).clip(0, 255)
                    image = pixels.astype(np.uint8).reshape(20, 20, 3)
                    Image.fromarray(image).save(face / f"{number:05d}.png")
    names = [
        f"{speaker}/{video}/{number:05d}"
        for speaker in VOXCELEB["vox2"]
        for video in VIDEOS
        for number in range(1, UTTERANCES["vox2"] + 1)
    ]
    rows = [
        (name.removeprefix("dev/wav/"), 1.0, f"$data_root/{name}.wav", 0, 16000)
        for name in names
    ]
    write_annotation(folder / "vox2.csv", rows)
    utterances = read_annotation(folder / "vox2.csv", folder / "vox2")
    labels = [row // UTTERANCES["vox2"] for row in range(len(names))]
    ids = list(utterances.ids())
    write_labels(folder / "vox2_labels", utterances, ids, labels, "none")
    files = [
        f"{speaker}/{video}/00001"
        for speaker in VOXCELEB["vox1"]
        for video in VIDEOS
    ]
    (folder / "vox1_faces.csv").write_text(
        "ID,face\n"
        + "".join(f"{file}.wav,vox1_faces/{file}.png\n" for file in files)
    )
    first, second = (
        [f"{speaker}/{video}/00001.wav" for video in VIDEOS]
        for speaker in VOXCELEB["vox1"]
    )
    (folder / "vox1_trials").mkdir()
    for name in "OEH":
        (folder / "vox1_trials" / f"vox1_{name}.txt").write_text(
            f"1 {first[0]} {first[1]}\n0 {first[0]} {second[1]}\n"
            f"1 {second[0]} {second[1]}\n"
        )


def write_pseudo_labels(folder):
    """A training CSV, pseudo-labels and speakers of the audio."""
    rows = [
        (f"s{s}/{n}.flac", 1.5, f"$data_root/s{s}/{n}.flac", 0, 24000)
        for s in range(SPEAKERS)
        for n in range(TAKES)
    ]
    write_annotation(folder / "train.csv", rows)
    utterances = read_annotation(folder / "train.csv", folder / "audio")
    ids = list(utterances.ids())
    labels = [row % SPEAKERS for row in range(len(ids))]
    write_labels(folder / "labels", utterances, ids, labels, "none")
    speakers = [f"{name},{name.split('/')[0]}" for name in ids]
    (folder / "speakers.csv").write_text("\n".join(["ID,spk_id", *speakers]))


def write_wavlm(folder):
    """A WavLM of two layers with random weights."""
    torch.manual_seed(0)
    config = transformers.WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    transformers.WavLMModel(config).save_pretrained(str(folder))
    preprocessor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    preprocessor.save_pretrained(str(folder))


def write_run(folder, dataset, hparams_file, sizes, labels):
    """A checkpoint of training on the pseudo-labels."""
    data = {"labels": "audio", "vox2_labels": "vox2"}[labels]
    labels = str(folder / labels / "pseudo_labels.csv")
    count = read_labels(labels, folder / data).count
    run = folder / f"run_{dataset}"
    given = {
        **sizes,
        "data_folder": "x",
        "pseudo_labels": labels,
        "output_folder": str(run),
    }
    if dataset == "VoxCeleb":
        given["wavlm_source"] = str(folder / "wavlm")
    with open(ROOT / f"recipes/{dataset}/SSL/hparams/{hparams_file}") as file:
        hparams = load_hyperpyyaml(file, given)
    speeds = len(hparams["view_sampler"].speeds)
    classifier = hparams["classifier"](classes=count * speeds)
    hparams["checkpointer"].add_recoverable("classifier", classifier)
    hparams["checkpointer"].save_checkpoint()
    note_labels(str(run), labels)


if __name__ == "__main__" and not (FOLDER / "complete").exists():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    make_samples(FOLDER)
    (FOLDER / "complete").touch()
