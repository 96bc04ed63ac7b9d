"""Prepares known corpora: training annotation, trial lists, map of models.

    > python corpora_prepare.py cnceleb /corpora/CN-Celeb lists/cnceleb
    > python corpora_prepare.py sitw /corpora/sitw lists/sitw
    > python corpora_prepare.py kaldi data/train lists/train

``--help`` lists the corpora; ``CORPUS --help`` has the layout and the output:

* ``train.csv``: annotation for training, without test speakers and without
  labels (``train_annotation`` of a training, with ``skip_prep: True``);
* ``NAME.txt``: a trial list for ``trials`` of verify.yaml, with paths relative
  to the corpus (``data_root``);
* ``NAME.map``: files of each model, for ``enrolment`` of verify.yaml;
* ``speakers.csv`` with ``--speakers``: true speakers, for train_supervised.py
  and ``truth``. Nothing else reads labels of training audio.

Number of trials or utterances of an official list is compared with the
published one; ``--any_count`` allows another one.
"""

import argparse
import contextlib
import csv
import glob
import logging
import os
import shutil
import subprocess
import sys
from multiprocessing.pool import ThreadPool

import numpy as np
from audio_folder_prepare import annotation_row, prepare_audio_folder
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.dataio.kaldi import read_map
from speechbrain_ssl.evaluation.trials import few, read_models, read_trials
from speechbrain_ssl.files import read_text, write_csv, write_whole

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# trials, and target trials where known; docs/corpora.md has the sources
CNCELEB_TRIALS = 3_484_292, 17_755
THREE_D_SPEAKER_TRIALS = {
    "trials_cross_device": (180_000, None),
    "trials_cross_distance": (180_000, None),
    "trials_cross_dialect": (175_163, None),
}
# utterances
LIBRISPEECH = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
}
MOST_PARTS = 4  # of a path, by which lists name a file


def cnceleb(data_folder, out, options):
    """CN-Celeb 1 and 2: training set, trials, models of several files.

    DATA has the folders of CN-Celeb (data, dev/dev.lst, eval/lists) and, if
    wanted, of CN-Celeb2 (data). Training utterances are those of the speakers
    in dev.lst and of CN-Celeb2. cnceleb.map enrols all files of a speaker
    (enroll.map), cnceleb_concat.map their concatenation (enroll.lst). The lists
    may say wav where the files are flac.
    """
    base = _base(data_folder, "eval/lists/trials.lst")
    dev = set(read_text(f"{data_folder}/{base}/dev/dev.lst").split())
    own = os.path.normpath(os.path.join(base, "data"))

    def problem(path):
        folder, _, speaker = os.path.dirname(path).rpartition("/")
        if os.path.basename(folder) != "data":
            return "not training audio: not in data/SPEAKER"
        if folder == own and speaker not in dev:
            return "test speaker: not in dev.lst"
        return ""

    train(data_folder, out, options, problem, lambda path: path.split("/")[-2])
    places = index_audio(data_folder)
    lists = os.path.join(data_folder, base, "eval/lists")
    trials = read_trials(os.path.join(lists, "trials.lst"), need_labels=True)
    check_count("trials.lst", trials, CNCELEB_TRIALS, options)
    folders = {"": "data", "_concat": "eval"}
    for ending, name in (("", "enroll.map"), ("_concat", "enroll.lst")):
        models = {
            model: [f"{base}/{folders[ending]}/{file}" for file in files]
            for model, files in read_models(os.path.join(lists, name)).items()
        }
        write_map(out, f"cnceleb{ending}", models, places, name)
    tests = {name: f"{base}/eval/{name}" for name in trials.files}
    tests = {n: p for n, p in tests.items() if n not in models}
    write_trials(out, "cnceleb", trials, tests, places)


def sitw(data_folder, out, options):
    """SITW: core-core and core-multi trials of dev and eval.

    DATA has the folders dev and eval with lists/enroll-core.lst,
    keys/core-core.lst, keys/core-multi.lst and audio. Number of trials: not
    checked. There is no training set.
    """
    places, found = index_audio(data_folder), 0
    for split in ("dev", "eval"):
        base = os.path.join(data_folder, split)
        if not os.path.isdir(base):
            continue
        # more columns than a model and its file are not used
        enrolled = read_rows(os.path.join(base, "lists/enroll-core.lst"), 2)
        models = {model: [f"{split}/{file}"] for model, file in enrolled}
        write_map(out, f"sitw_{split}", models, places, "enroll-core.lst")
        for condition in ("core-core", "core-multi"):
            path = os.path.join(base, f"keys/{condition}.lst")
            trials = read_trials(path, need_labels=True)
            tests = {
                name: f"{split}/{name}"
                for name in trials.files
                if name not in models
            }
            name = f"sitw_{split}_{condition}"
            write_trials(out, name, trials, tests, places)
            found += 1
    if not found:
        raise FileNotFoundError(
            f"{data_folder} has neither a folder dev nor eval. Give the folder "
            "of SITW."
        )


def voices(data_folder, out, options):
    """VOiCES challenge of 2019: every *trial-keys.lst below DATA.

    A list `model file tgt|imp` belongs to the *enroll.lst (`model file`) of the
    same split (dev or eval), which may be in another folder. Number of trials:
    not checked. There is no training set.
    """
    keys = _glob(data_folder, "*trial-keys.lst")
    places = index_audio(data_folder)
    for key in keys:
        split = "eval" if "eval" in os.path.basename(key).lower() else "dev"
        enrolled = [
            path
            for path in _glob(data_folder, "*enroll*.lst")
            if split in os.path.basename(path).lower()
        ]
        if len(enrolled) != 1:
            raise ValueError(
                f"{key} needs one list of models, *{split}*enroll*.lst below "
                f"{data_folder}; found {enrolled}."
            )
        models = {model: [file] for model, file in read_rows(enrolled[0], 2)}
        name = f"voices_{split}"
        write_map(out, name, models, places, enrolled[0])
        trials = read_trials(key, need_labels=True)
        tests = {name: name for name in trials.files if name not in models}
        write_trials(out, name, trials, tests, places)


def voxsrc(data_folder, out, options):
    """VoxSRC of 2020 to 2023: lists of validation (labelled) and test.

    DATA has VoxCeleb1 and the audio of the year (voxceleb1_cd of 2020,
    VoxSRC2022_dev, ...) anywhere below it. A file of a list is found by the end
    of its path: voxceleb1/id10955/VIDEO/00003.wav also as
    wav/id10955/VIDEO/00003.wav. Lists without labels give scores only. Number
    of trials: not checked.
    """
    stems = [os.path.splitext(os.path.basename(p))[0] for p in options.list]
    if len(set(stems)) < len(stems):
        raise ValueError(
            "--list: expected lists with different file names, found "
            f"{', '.join(stems)}. Rename one."
        )
    places = index_audio(data_folder)
    for path, name in zip(options.list, stems):
        trials = read_trials(path)
        same = {file: file for file in trials.files}
        write_trials(out, name, trials, same, places)


def sre(data_folder, out, options):
    """NIST SRE of 2016 to 2021: enrolment and trials, sph through ffmpeg.

    The tables (tsv) of the LDC's docs have a header: modelid, segmentid (or
    segment), side, and targettype in a key (sre18_eval_trial_key.tsv); without
    it there are scores only. The files of the lists are converted by ffmpeg to
    OUT/wav, each side of a telephone call to its own file; data_root of the
    lists is OUT. Number of trials: not checked.
    """
    places = index_audio(data_folder)
    jobs, missing = {}, set()

    def converted(segment, side):
        source = locate(places, segment)
        if source is None:
            missing.add(segment)
            return segment
        side = side if side in ("a", "b") else "a"
        stem = os.path.splitext(os.path.basename(source))[0]
        target = f"wav/{stem}_{side}.wav"
        jobs[target] = os.path.join(data_folder, source), "ab".index(side)
        return target

    models = {}
    for row in read_table(options.enrolment):
        file = converted(row["segment"], row.get("side", "a"))
        models.setdefault(row["model"], []).append(file)
    rows = read_table(options.trials)
    tests = [converted(row["segment"], row.get("side", "a")) for row in rows]
    _refuse_missing(missing, options.trials)
    unknown = {row["model"] for row in rows} - models.keys()
    if unknown:
        raise ValueError(
            f"{len(unknown)} models of {options.trials} are not in "
            f"{options.enrolment}: {few(unknown)}."
        )
    convert(jobs, out, options.num_workers)
    write_models(os.path.join(out, "sre.map"), models)
    labels = [row.get("targettype") for row in rows]
    if set(labels) == {None}:
        labels = None
    elif not set(labels) <= {"target", "nontarget"}:
        raise ValueError(
            f"{options.trials}: expected target or nontarget in targettype, "
            f"found {few({str(label) for label in labels})}."
        )
    write_lines(
        os.path.join(out, "sre.txt"),
        [row["model"] for row in rows],
        tests,
        labels and [int(label == "target") for label in labels],
    )


def three_d_speaker(data_folder, out, options):
    """3D-Speaker: training set, cross-device, -distance, -dialect trials.

    DATA has files/train_wav.scp, files/train_utt2spk, files/test_wav.scp and
    files/trials_cross_*; the paths of wav.scp are relative to DATA.
    """
    folder = os.path.join(data_folder, "files")
    waves = read_map(os.path.join(folder, "test_wav.scp"))
    places = index_audio(data_folder)
    scp = os.path.join(folder, "train_wav.scp")
    if os.path.isfile(scp):
        files = {utt: path for utt, (path,) in read_map(scp).items()}
        speakers = None
        if options.speakers:
            speakers = read_map(os.path.join(folder, "train_utt2spk"))
        train_files(data_folder, out, options, files, speakers)
    for name, count in THREE_D_SPEAKER_TRIALS.items():
        trials = read_trials(os.path.join(folder, name), need_labels=True)
        check_count(name, trials, count, options)
        unknown = set(trials.files) - waves.keys()
        if unknown:
            raise ValueError(
                f"{len(unknown)} utterances of {name} are not in "
                f"test_wav.scp: {few(unknown)}."
            )
        files = {utt: waves[utt][0] for utt in trials.files}
        write_trials(out, f"3dspeaker_{name[7:]}", trials, files, places)


def commonvoice(data_folder, out, options):
    """CommonVoice: the training set of a table (tsv) of one language.

    DATA is the folder of a language, with clips and tables such as
    validated.tsv (--tsv). Its column path names the clips, and client_id the
    speakers, which only --speakers reads. Number of clips: not checked.
    """
    path = os.path.join(data_folder, options.tsv)
    rows = read_table(path, ("path", "client_id"))
    files = {row["path"]: f"clips/{row['path']}" for row in rows}
    if len(files) < len(rows):
        raise ValueError(f"{path} names a clip twice.")
    speakers = None
    if options.speakers:
        speakers = {row["path"]: (row["client_id"],) for row in rows}
    train_files(data_folder, out, options, files, speakers)


def librispeech(data_folder, out, options):
    """LibriSpeech: the training set of some subsets (--subsets).

    DATA has the folders train-clean-100/SPEAKER/CHAPTER/*.flac, ...
    """

    def problem(path):
        subset = path.split("/")[0]
        return "" if subset in options.subsets else "other subset"

    for subset in options.subsets:
        folder = os.path.join(data_folder, subset)
        paths, _ = audio.find(folder)
        count = LIBRISPEECH.get(subset)
        _check(f"utterances of {subset}", len(paths), count, options)
    train(data_folder, out, options, problem, lambda path: path.split("/")[-3])


def kaldi(data_folder, out, options):
    """A data directory of Kaldi: wav.scp, and segments if there is one.

    Relative paths start from --data_root, by default the current folder.
    utt2spk is read with --speakers only. Commands in wav.scp are not run.
    """
    root = os.path.abspath(options.data_root or os.getcwd())
    waves = read_map(os.path.join(data_folder, "wav.scp"))
    files = {utt: os.path.join(root, path) for utt, (path,) in waves.items()}
    base = os.path.commonpath(
        [os.path.dirname(path) for path in files.values()]
    )
    files = {utt: os.path.relpath(path, base) for utt, path in files.items()}
    speakers = None
    if options.speakers:
        speakers = read_map(os.path.join(data_folder, "utt2spk"))
    segments = os.path.join(data_folder, "segments")
    if not os.path.isfile(segments):
        train_files(base, out, options, files, speakers)
    else:
        train_files(base, out, options, files, None, "recordings.csv")
        write_segments(base, out, options, read_map(segments, 3), speakers)
    logger.info(f"data_folder of a training: {base}")


def train(data_folder, out, options, problem, speaker_of):
    """Writes train.csv of the files of a folder, and speakers.csv if asked.

    ``problem(path)`` says why a file is left out, or gives an empty string;
    ``speaker_of(path)`` gives its speaker. Paths are relative to the corpus.
    """

    def find(folder):
        paths, left_out = audio.find(folder)
        names = {path: os.path.relpath(path, folder) for path in paths}
        found = {path: problem(name) for path, name in names.items()}
        left_out.update({path: why for path, why in found.items() if why})
        return [path for path in paths if not found[path]], left_out

    _annotate(data_folder, out, options, find)
    if options.speakers:
        ids = list(read_annotation(f"{out}/train.csv", data_folder).ids())
        write_speakers(out, {name: speaker_of(name) for name in ids})


def train_files(
    data_folder, out, options, files, speakers=None, name="train.csv"
):
    """Writes an annotation ``name`` of listed files.

    ``files`` has the path relative to the corpus by ID, ``speakers`` the
    speaker by ID, for speakers.csv, or is None.
    """
    ids = {os.path.normpath(path): key for key, path in files.items()}
    if len(ids) < len(files):
        raise ValueError("Two IDs have the same file, without segments.")

    def find(folder):
        paths, left_out = {}, {}
        for path in sorted(ids):
            found = os.path.join(folder, path)
            if audio.is_file(found):
                paths[found] = path
            else:
                left_out[found] = "missing: there is no such file"
        if len(left_out) == len(ids):
            raise FileNotFoundError(
                f"None of {len(ids)} listed files is below {folder}: "
                f"{few(ids)}."
            )
        return list(paths), left_out

    def row(path, file):
        return (ids[os.path.normpath(path)], *annotation_row(path, file)[1:])

    _annotate(data_folder, out, options, find, row, name)
    if speakers is not None:
        kept = read_annotation(f"{out}/{name}", data_folder).ids()
        write_speakers(out, {key: _speaker(speakers, key) for key in kept})


def write_segments(data_folder, out, options, segments, speakers):
    """Writes train.csv of segments of the recordings in recordings.csv.

    ``segments`` has recording, start and end in seconds by ID; an end of -1 is
    that of the recording. ``speakers`` has the speaker by ID, for speakers.csv,
    or is None.
    """
    utterances = read_annotation(f"{out}/recordings.csv", data_folder)
    rows = [utterances.row(index) for index in range(len(utterances))]
    recordings = {row["ID"]: row for row in rows}
    found, lost, short = [], 0, 0
    for key, (name, *times) in segments.items():
        if name not in recordings:
            lost += 1
            continue
        row = recordings[name]
        rate = audio.sample_rate(row["wav"])
        try:
            start, stop = (float(time) for time in times)
        except ValueError as error:
            raise ValueError(f"segments, {key}: {error}") from error
        stop = row["stop"] if stop < 0 else round(stop * rate)
        start = round(start * rate)
        # times are rounded; later ends are mistakes
        if not 0 <= start < stop <= row["stop"] + 0.1 * rate:
            raise ValueError(
                f"segments: {key} lasts from {times[0]} to {times[1]} s, but "
                f"{name} has {row['stop'] / rate:.2f} s."
            )
        stop = min(stop, row["stop"])
        if stop - start < options.min_seconds * rate:
            short += 1
            continue
        wav = f"$data_root/{os.path.relpath(row['wav'], data_folder)}"
        found.append((key, (stop - start) / rate, wav, start, stop))
    if not found:
        raise ValueError(
            f"None of {len(segments)} segments can be used: {lost} are of "
            f"recordings that cannot be used, {short} too short."
        )
    write_annotation(f"{out}/train.csv", found)
    logger.info(
        f"{out}/train.csv: {len(found)} segments. Left out: {lost} of "
        f"recordings that cannot be used, {short} too short."
    )
    if speakers is not None:
        keys = [row[0] for row in found]
        write_speakers(out, {key: _speaker(speakers, key) for key in keys})


def write_speakers(out, speakers):
    """Writes speakers.csv from a dict of ID -> speaker."""
    path = os.path.join(out, "speakers.csv")
    write_csv(path, ("ID", "spk_id"), speakers.items())


def index_audio(data_folder):
    """Finds files by the ends of their paths, without extension.

    Keys are the last one to four parts of a path, values the path relative to
    the corpus, or None if several files end so.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "a").mkdir()
    >>> (folder / "a/1.flac").touch()
    >>> locate(index_audio(folder), "else/a/1.wav")
    'a/1.flac'
    """
    paths, _ = audio.find(data_folder)
    # of two formats, the one that is read faster
    paths.sort(key=lambda path: audio.EXTENSIONS.index(_extension(path)))
    places = {}
    for path in paths:
        name = os.path.relpath(path, data_folder)
        parts = os.path.splitext(name)[0].split("/")
        for count in range(1, min(len(parts), MOST_PARTS) + 1):
            key = "/".join(parts[-count:])
            other = places.setdefault(key, name)
            if other and os.path.splitext(other)[0] != "/".join(parts):
                places[key] = None
    return places


def locate(places, name):
    """The file with the longest common end, or None.

    ``places`` is from ``index_audio``; ``name`` is a path of a list, of any
    extension.
    """
    stem = os.path.splitext(name)[0] if _extension(name) in AUDIO else name
    parts = os.path.normpath(stem).split("/")[-MOST_PARTS:]
    for first in range(len(parts)):
        key = "/".join(parts[first:])
        if key in places:
            return places[key]
    return None


def write_map(out, name, models, places, source):
    """Writes NAME.map, after all of its files are found.

    ``models`` has the files of each model as the corpus names them, ``places``
    is from ``index_audio``, and ``source`` names the list in messages.
    """
    located = {f: locate(places, f) for own in models.values() for f in own}
    _refuse_missing({f for f, p in located.items() if p is None}, source)
    found = {
        model: [located[file] for file in own] for model, own in models.items()
    }
    write_models(os.path.join(out, f"{name}.map"), found)


def write_models(path, models):
    """Writes lines ``model file ...``, separated by tabs."""
    with write_whole(path) as file:
        for model, files in models.items():
            file.write("\t".join([model, *files]) + "\n")


def write_trials(out, name, trials, files, places):
    """Writes NAME.txt, after all of its files are found.

    ``files`` has the path of a name in the corpus; other names are models.
    ``places`` is from ``index_audio``.
    """
    located = {own: locate(places, path) for own, path in files.items()}
    _refuse_missing({f for f, p in located.items() if p is None}, name)
    names = [located.get(own, own) for own in trials.files]
    enrol, test = (
        [names[index] for index in side.tolist()]
        for side in (trials.enrol, trials.test)
    )
    labels = None if trials.targets is None else trials.targets.tolist()
    write_lines(os.path.join(out, f"{name}.txt"), enrol, test, labels)


def write_lines(path, enrol, test, labels):
    """Writes lines ``label enrol test``; without labels ``enrol test``."""
    columns = (enrol, test) if labels is None else (labels, enrol, test)
    with write_whole(path) as file:
        for fields in zip(*columns):
            file.write("\t".join(map(str, fields)) + "\n")
    logger.info(f"{path}: {len(enrol)} trials")


def check_count(name, trials, count, options):
    """Compares the numbers of trials and of targets with the official ones.

    ``count`` has both; the number of targets may be None.
    """
    _check(f"trials of {name}", len(trials.enrol), count[0], options)
    found = int(np.sum(trials.targets))
    _check(f"target trials of {name}", found, count[1], options)


def read_rows(path, count):
    """Reads the first fields of each line, separated by spaces."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        fields = line.split()
        if fields and len(fields) < count:
            raise ValueError(
                f"{path}, line {number}: expected {count} fields, found "
                f"{line.strip()!r}."
            )
        if fields:
            rows.append(fields[:count])
    return rows


def read_table(path, columns=("model", "segment")):
    """Reads a table with a header, separated by tabs.

    The table must have ``columns``; modelid counts as model, and segmentid as
    segment.
    """
    names = {"modelid": "model", "segmentid": "segment"}
    with open(path, newline="", encoding="utf-8-sig") as file:
        # quotation marks of sentences are plain characters
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = [names.get(name, name) for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(
                f"{path} has the columns {', '.join(header)}; expected also "
                f"{', '.join(missing)}, separated by tabs."
            )
        rows = [dict(zip(header, row)) for row in reader if row]
    for number, row in enumerate(rows, 2):
        if not all(row.get(name) for name in columns):
            raise ValueError(f"{path}, row {number}: a value is missing.")
    return rows


def convert(jobs, out, num_workers=None):
    """Converts one channel of each file to wav with ffmpeg.

    ``jobs`` has source and channel, by the path of the wav file below ``out``.
    """
    if shutil.which("ffmpeg") is None:
        raise FileNotFoundError("ffmpeg is not installed; sph files need it.")
    os.makedirs(os.path.join(out, "wav"), exist_ok=True)

    def run(job):
        target, (source, channel) = job
        path = os.path.join(out, target)
        if os.path.exists(path):
            return
        part = f"{path}.part"
        # ffmpeg would take silence for a channel that is not there
        with contextlib.suppress(audio.AudioError):
            if audio.info(source).channels <= channel:
                raise ValueError(f"{source} has no channel {channel + 1}.")
        pan = ["-af", f"pan=mono|c0=c{channel}", "-f", "wav", part]
        command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", source]
        done = subprocess.run([*command, *pan], capture_output=True, text=True)
        if done.returncode:
            raise OSError(
                f"ffmpeg cannot convert channel {channel + 1} of {source}: "
                f"{done.stderr.strip()}"
            )
        os.replace(part, path)

    with ThreadPool(num_workers or os.cpu_count()) as pool:
        for _ in pool.imap_unordered(run, jobs.items()):
            pass


AUDIO = set(audio.EXTENSIONS)
CORPORA = {
    "cnceleb": cnceleb,
    "sitw": sitw,
    "voices": voices,
    "voxsrc": voxsrc,
    "sre": sre,
    "3dspeaker": three_d_speaker,
    "commonvoice": commonvoice,
    "librispeech": librispeech,
    "kaldi": kaldi,
}
HAVE_TRAINING = ("cnceleb", "3dspeaker", "commonvoice", "librispeech", "kaldi")
COUNTED = ("cnceleb", "3dspeaker", "librispeech")


def _annotate(data_folder, out, options, find, row=None, name="train.csv"):
    """Writes an annotation with ``prepare_audio_folder``."""
    prepare_audio_folder(
        data_folder,
        os.path.join(out, name),
        min_seconds=options.min_seconds,
        num_workers=options.num_workers,
        find=find,
        row=row,
    )


def _base(data_folder, mark):
    """The folder with a file, DATA itself or one in it, relative to DATA."""
    for base in (".", *sorted(os.listdir(data_folder))):
        if os.path.isfile(os.path.join(data_folder, base, mark)):
            return base
    raise FileNotFoundError(
        f"Neither {data_folder} nor a folder in it has {mark}. Give the folder "
        "of the corpus."
    )


def _glob(data_folder, pattern):
    """Files of a pattern at any depth, or an error."""
    found = glob.glob(
        f"{glob.escape(data_folder)}/**/{pattern}", recursive=True
    )
    if not found:
        raise FileNotFoundError(f"{data_folder} has no {pattern}.")
    return sorted(found)


def _extension(path):
    return os.path.splitext(path)[1].lower()


def _speaker(speakers, key):
    """Speaker of an utterance; an error names one that has none."""
    if key not in speakers:
        raise ValueError(f"utt2spk has no speaker of {key!r}.")
    return speakers[key][0]


def _check(what, found, count, options):
    """Compares a number with the official one."""
    if count is None or found == count:
        return
    message = f"{found} {what}, but officially there are {count}."
    if not options.any_count:
        raise ValueError(
            f"{message} Is the file complete and unchanged? --any_count "
            "accepts it; error rates are then not comparable."
        )
    logger.warning(message)


def _refuse_missing(missing, source):
    """An error that counts the files of a list that are not there."""
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} audio files of {source} are missing in the "
            f"corpus, or several files have these names: {few(missing)}."
        )


def _parse_arguments(argv):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    corpora = parser.add_subparsers(dest="corpus", required=True)
    for name, function in CORPORA.items():
        text = function.__doc__
        own = corpora.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.add_argument("data_folder", metavar="DATA")
        own.add_argument("out", metavar="OUT")
        own.add_argument("--num_workers", type=int)
        if name in HAVE_TRAINING:
            own.add_argument("--min_seconds", type=float, default=1.0)
            own.add_argument("--speakers", action="store_true")
        if name in COUNTED:
            own.add_argument("--any_count", action="store_true")
        if name == "voxsrc":
            own.add_argument("--list", nargs="+", required=True)
        elif name == "sre":
            own.add_argument("--enrolment", required=True, metavar="TSV")
            own.add_argument("--trials", required=True, metavar="TSV")
        elif name == "commonvoice":
            own.add_argument("--tsv", default="validated.tsv")
        elif name == "librispeech":
            own.add_argument("--subsets", nargs="+", default=[*LIBRISPEECH][:3])
        elif name == "kaldi":
            own.add_argument("--data_root")
    return parser.parse_args(argv)


def main(argv=None):
    """Prepares a corpus; see the module's docstring."""
    options = _parse_arguments(argv)
    folder = os.path.abspath(options.data_folder)
    try:
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"There is no folder {folder}.")
        CORPORA[options.corpus](folder, options.out, options)
    except (OSError, ValueError) as error:
        sys.exit(f"prepare: {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
