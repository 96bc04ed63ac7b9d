"""The model card of an exported folder, and its decision threshold.

The card is ``README.md``: metadata that huggingface.co reads, how the encoder
was trained, code that loads it, the threshold and its limits. For programs the
threshold stands in ``threshold.json``.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from speechbrain_ssl import __version__
from speechbrain_ssl.files import read_text, write_json, write_whole

CARD_NAME, THRESHOLD_NAME = "README.md", "threshold.json"
TASK: dict[str, Any] = {
    "task_type": "speaker-verification",
    "task_name": "Speaker verification",
}
# what the hub shows until the publisher says more; und: undetermined
UNKNOWN_LICENSE, UNKNOWN_LANGUAGE = "unknown", "und"
FIGURES = {
    "EER": ("eer", "Equal error rate (%)"),
    "minDCF_0.01": ("min_dcf", "Minimum detection cost, target prior 0.01"),
    "minDCF_0.05": ("min_dcf", "Minimum detection cost, target prior 0.05"),
}
SOURCE = re.compile(
    r'(from_hparams\(\s*source=|embed_faces\()"(?:[^"\\]|\\.)*"'
)
THRESHOLD_SECTION = re.compile(r"^## Threshold\n.*?(?=^## |\Z)", re.M | re.S)
PACKAGES = ("speechbrain", "torch", "transformers")
TASKS = ("verification", "recognition", "embeddings")
FACE_TITLE = "Face encoder"

VOICE_USE = """\
from speechbrain.inference.speaker import SpeakerRecognition

encoder = SpeakerRecognition.from_hparams(source={source}, savedir=None)
waveform = encoder.load_audio("a.wav")  # one channel, {rate} Hz
embedding = encoder.encode_batch(waveform)  # [1, 1, {dim}]
"""
FACE_USE = """\
from speechbrain_ssl.inference import embed_faces

# images, folders of images of one face, or videos, cropped to the face
embeddings = embed_faces({source}, ["a.jpg", "b.jpg"])  # [2, {dim}]
"""
VOICE_LIMITS = """\
* Recordings of less than a second, silence and several voices in one
  recording give unreliable scores. The commands of speechbrain_ssl leave out
  digital silence (0.2 s or longer, below -80 dBFS) and embed audio above 60 s
  in windows; SpeechBrain's `encode_batch` and `verify_files` do not.
* Recordings of one session seem more alike than the voice alone makes them.
"""
FACE_LIMITS = """\
* Images must show one face and little else, as the training images did. Small,
  turned or covered faces give unreliable scores.
* Images of one session seem more alike than the face alone makes them.
"""
BODY = """
# {title}

{notes}

{facts}
## Use

```python
{use}```

{needs} SpeechBrain runs whatever code the `hyperparams.yaml` of a folder
names, so load folders of people you trust. The commands of speechbrain_ssl
read the file first and refuse other classes than those of encoders.

## Threshold

None was measured. SpeechBrain's default of 0.25 belongs to another model.
`speechbrain-ssl verify --model_folder FOLDER --trials LIST` measures one on a
labelled list and writes it here.

## Limits

* Error rates hold for the data they were measured on. Other languages,
  channels, noise, cameras or ages of people need a labelled list of their own.
{limits}* A score is no proof of identity. Do not decide about people by it alone, and
  process voices and faces only with their consent.
"""

VOICE_SCORE = 'score, _ = encoder.verify_files("a.wav", "b.wav")'
FACE_SCORE = "score = torch.cosine_similarity(*embeddings, dim=0)"
THRESHOLD = """\
## Threshold

At a cosine of {threshold:.4f} false acceptances and false rejections are
equally frequent on the labelled list {trials}{counts}: the equal error rate is
{eer:.2f} %{interval}. The labels of the list were used to measure it and to
choose the threshold. Other audio may need another threshold; where target
trials are rarer, a higher one.

```python
score, _ = encoder.verify_files("a.wav", "b.wav")
same = float(score) >= {threshold:.4f}
```

"""
LABEL_FREE = """\
## Threshold

A cosine of {threshold:.4f} accepts {percent:.3g} % of the pairs of similar
utterances of {audio}. **It was found without labels**: {utterances} utterances
that training did not use, two parts of {seconds:.2g} s of each. If two
recordings have different channels (device, room, noise), their cosines are
lower; {augmented:.4f} accepts {percent:.3g} % of such pairs.
Error model: if all of these pairs are of two speakers, {percent:.3g} % is the
rate of false acceptances. If a share s of them is of one speaker, the rate is
between ({percent:.3g} % - s) / (1 - s) and {percent:.3g} % / (1 - s). The rate
of false rejections is unknown. All this holds for recordings like that audio;
on other audio the rate may be many times higher. A labelled list measures it:
`speechbrain-ssl verify --model_folder FOLDER --trials LIST`.

```python
score, _ = encoder.verify_files("a.wav", "b.wav")
same = float(score) >= {threshold:.4f}
```

"""
KNOWN = """\
**{count} files of the list are in the {name} too**: the error rates are not
those of unknown recordings.

"""


def write_card(
    folder: str,
    name: str,
    notes: str,
    facts: Mapping[str, Any],
    sample_rate: int,
    dim: int,
    needs: str,
    tags: Sequence[str] = (),
    base_model: str | None = None,
) -> None:
    """Writes the card of a model that was not verified yet.

    The code of the card loads the model as ``name``; ``notes`` is the first
    paragraph, on the training, and ``facts`` are the rows of a table. A
    ``sample_rate`` of 0 is that of a face encoder, ``dim`` the width of the
    embeddings, ``needs`` a sentence on the packages that loading needs.
    ``base_model`` is the hub's name of the pretrained network.
    """
    kind = "speaker" if sample_rate else "face"
    data = ModelCardData(
        language=UNKNOWN_LANGUAGE,
        license=UNKNOWN_LICENSE,
        library_name="speechbrain",
        pipeline_tag="feature-extraction",
        tags=["speechbrain", *(f"{kind}-{task}" for task in TASKS), *tags],
        base_model=base_model,
    )
    packages = [name for name in PACKAGES if name in needs or name == "torch"]
    facts = {**facts, "made with": _versions(packages)}
    rows = "".join(f"| {_cell(k)} | {_cell(v)} |\n" for k, v in facts.items())
    use = VOICE_USE if sample_rate else FACE_USE
    body = BODY.format(
        title="Speaker encoder" if sample_rate else FACE_TITLE,
        notes=notes,
        facts=f"| | |\n|---|---|\n{rows}",
        use=use.format(source=_quoted(name), rate=sample_rate, dim=dim),
        needs=needs,
        limits=VOICE_LIMITS if sample_rate else FACE_LIMITS,
    )
    with write_whole(os.path.join(folder, CARD_NAME)) as file:
        file.write(f"---\n{data.to_yaml()}\n---\n{body}")


def suggest_threshold(
    folder: str,
    summary: Mapping[str, Any],
    trials: str,
    known_files: Mapping[str, int] | None = None,
) -> None:
    """Writes a decision threshold and the error rates of its list.

    They go to ``threshold.json`` and, where there is a card, to its threshold
    section and its model-index. An earlier threshold is replaced; figures of
    other lists stay in the model-index.

    ``summary`` is that of ``verify``: ``threshold`` on the cosine and ``EER``
    in percent; where it has them also ``EER_low`` and ``EER_high``, the numbers
    ``trials`` and ``targets``, and ``minDCF_0.01`` and ``minDCF_0.05``. Where
    it has a part ``raw`` of the plain cosines, that part counts. ``trials`` is
    the name of the labelled list; ``known_files`` has the number of its files
    that are in the cohort or the training set, by the name of that set.
    """
    summary = summary.get("raw", summary)
    threshold = float(summary["threshold"])
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"A threshold on cosines is between -1 and 1, found {threshold}"
        )
    found: dict[str, Any] = {
        "threshold": threshold,
        "EER": float(summary["EER"]),
    }
    for key in ("EER_low", "EER_high"):
        if key in summary:
            found[key] = float(summary[key])
    if "targets" in summary:
        found["trial_count"] = int(summary["trials"])
        share = summary["targets"] / summary["trials"]
        found["target_prior"] = round(share, 6)
    known = {name: n for name, n in (known_files or {}).items() if n}
    if known:
        found["known_files"] = known
    found["trials"] = trials
    write_json(os.path.join(folder, THRESHOLD_NAME), found)
    _replace_threshold(folder, _threshold_section(found), summary, trials)


def set_label_free_threshold(
    folder: str, figures: Mapping[str, Any], audio: str
) -> bool:
    """Writes a decision threshold that was found without labels.

    It goes to ``threshold.json`` and to the threshold section of the card, with
    ``figures`` of ``evaluation.selfcheck.SelfCheck`` on ``audio``. A threshold
    that a labelled list gave is kept; says whether it was written.
    """
    found = read_threshold(folder)
    if found is not None and not found.get("label_free"):
        return False
    names = [
        *("threshold", "threshold_augmented"),
        *("false_acceptance", "false_acceptance_low"),
    ]
    made: dict[str, Any] = {
        **{name: float(figures[name]) for name in names},
        "label_free": True,
        "audio": audio,
    }
    write_json(os.path.join(folder, THRESHOLD_NAME), made)
    section = LABEL_FREE.format(
        threshold=made["threshold"],
        augmented=made["threshold_augmented"],
        percent=100 * made["false_acceptance"],
        audio=_cell(audio),
        utterances=figures["utterances"],
        seconds=figures["seconds"],
    )
    _replace_threshold(folder, section)
    return True


def read_threshold(folder: str) -> dict[str, Any] | None:
    """The threshold that was written by one of the two functions above.

    It is a dict with ``threshold`` on the cosine. Of a labelled list it has
    also ``EER`` in percent, ``trials``, its name, and what else
    ``suggest_threshold`` was given; without labels ``label_free`` (True),
    ``audio`` and the rates of ``set_label_free_threshold``. None if there is no
    threshold.
    """
    path = os.path.join(folder, THRESHOLD_NAME)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8-sig") as file:
            found = json.load(file)
        threshold = float(found["threshold"])
        if not -1 <= threshold <= 1:
            raise ValueError(f"{threshold} is no cosine")
        return {**found, "threshold": threshold}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} should hold a cosine as "threshold", but: {error!r}. '
            "Delete it, or verify the model again."
        ) from error


def publish_card(
    folder: str,
    source: str,
    license: str | None = None,
    language: Sequence[str] | None = None,
) -> str:
    """Text of the card as it is published under another name.

    The code of the card loads the model as ``source``. ``license`` is the hub's
    name, ``language`` has ISO 639 codes; None: those of the card.
    """
    card = read_card(folder)
    data: Any = card.data
    card.text = SOURCE.sub(
        lambda found: f"{found[1]}{_quoted(source)}", card.text
    )
    if data.eval_results:
        data.model_name = source.split("/")[-1]
    if license:
        data.license = license
    if language:
        data.language = list(language)
    return str(card)


def read_card(folder: str) -> ModelCard:
    """Reads metadata and text of the card of a model folder."""
    path = os.path.join(folder, CARD_NAME)
    text = read_text(path)
    try:
        return ModelCard(text)
    except Exception as error:  # of the YAML parser or the hub's checks
        raise ValueError(
            f"The metadata at the top of {path} cannot be read: {error}"
        ) from error


def set_origin(
    folder: str, license: str | None, base_model: str | None
) -> None:
    """Writes license and hub name of a model's source into its card.

    Either is None if it is unknown.
    """
    card = read_card(folder)
    data: Any = card.data
    data.license = license or UNKNOWN_LICENSE
    data.base_model = base_model or data.base_model
    _write(os.path.join(folder, CARD_NAME), card)


def _write(path, card):
    """Replaces a card in one step."""
    with write_whole(path) as file:
        file.write(str(card))


def _replace_threshold(folder, section, summary=None, trials=None):
    """Replaces the threshold section; adds error rates of a labelled list."""
    path = os.path.join(folder, CARD_NAME)
    if not os.path.isfile(path):
        return
    card = read_card(folder)
    if f"# {FACE_TITLE}\n" in card.text:
        section = section.replace(VOICE_SCORE, FACE_SCORE)
    if summary is not None:
        _add_results(card, summary, trials)
    card.text, count = THRESHOLD_SECTION.subn(lambda _: section, card.text)
    if not count:
        card.text = f"{card.text.rstrip()}\n\n{section}"
    _write(path, card)


def _add_results(card, summary, trials):
    """Puts the error rates of a list into the model-index."""
    results = [
        EvalResult(
            **TASK,
            dataset_type=re.sub(r"[^\w.-]+", "-", trials) or "trials",
            dataset_name=trials,
            metric_type=kind,
            metric_name=words,
            metric_value=round(float(summary[name]), 4),
            metric_args=_interval(summary) if name == "EER" else None,
        )
        for name, (kind, words) in FIGURES.items()
        if name in summary
    ]
    others = [
        result
        for result in card.data.eval_results or ()
        if result.dataset_name != trials
    ]
    card.data.model_name = card.data.model_name or "speaker-encoder"
    card.data.eval_results = others + results


def _interval(summary):
    """The 95 % interval of the EER, for the model-index."""
    if "EER_low" not in summary or "EER_high" not in summary:
        return None
    return {
        "95 % interval": [
            round(float(summary[key]), 2) for key in ("EER_low", "EER_high")
        ]
    }


def _threshold_section(found):
    """The part of the card that says how to decide."""
    counts = interval = ""
    if "trial_count" in found:
        counts = (
            f" ({found['trial_count']} trials, "
            f"{100 * found['target_prior']:.3g} % of them target trials)"
        )
    if "EER_low" in found and "EER_high" in found:
        interval = (
            f" (95 % interval {found['EER_low']:.2f} to "
            f"{found['EER_high']:.2f} %)"
        )
    section = THRESHOLD.format(
        trials=_cell(found["trials"]),
        counts=counts,
        eer=found["EER"],
        interval=interval,
        threshold=found["threshold"],
    )
    return section + "".join(
        KNOWN.format(count=count, name=name)
        for name, count in found.get("known_files", {}).items()
    )


def _cell(value):
    """A value on one line of Markdown, also inside a table."""
    return " ".join(str(value).split()).replace("|", r"\|")


def _quoted(text):
    """A Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _versions(packages):
    """Versions of the packages that the model was exported with."""
    found = [f"speechbrain_ssl {__version__}"]
    for name in packages:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
