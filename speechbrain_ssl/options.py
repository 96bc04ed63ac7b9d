"""The command line of the recipes: one YAML file and changes to it.

``load_experiment`` does the work of ``speechbrain.parse_arguments`` and
``load_hyperpyyaml``, and says what is wrong with either in words. Differences
to SpeechBrain's parser, which it replaces:

* Run options (``--device``, ``--debug``, ``--precision``...) are known by their
  full names only. SpeechBrain takes ``--optimizer adamw`` as
  ``--optimizer_step_limit`` and never tells.
* A key or an inner key that the YAML does not have is an error.
* A value arrives as it was typed, ``=`` and ``#`` and ``: `` included. It is
  YAML if it begins with ``[ { ( ! " '`` or is a number, a truth value or null;
  else it is text. A number is text as well for a key that ends with
  ``_folder`` or is in ``FOLDERS``: a folder may be called 2024.
* ``None`` means null, as in Python. (``"'None'"`` is the text.)
* A flag without a value is true for run options and keys that are True or
  False in the YAML, and may be given the value: ``--debug False``.
* A mapping changes keys of the YAML's mapping, or arguments of its object. With
  another tag (``!new:my.Net {dim: 8}``) it replaces what the YAML has there.
* ``--encoder_file FILE`` replaces the encoder of a training by that of another
  YAML: a path, or the name of one that comes with the package (``campplus``).
* What is both a run option and a key of the YAML is changed in both.
* Run options that nothing here would follow are refused.
"""

import difflib
import importlib.util
import inspect
import io
import json
import os
import pathlib
import pydoc
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from speechbrain_ssl import shipped
from speechbrain_ssl.help import REFUSED

# Also options of the command line, though without a help text.
LIST_OPTIONS = ("jit_module_keys", "compile_module_keys")
# Keys of earlier versions, and their names today.
RENAMED = {
    "corruption": "augmentation",
    "corrupt_on": "augment_on",
    "room_folder": "rir_folder",
    "clean_twins": "clean_views",
}
RENAMED_CLASSES = {
    "speechbrain_ssl.dataio.corruption.Corruption": "a list of effects, "
    "speechbrain_ssl.dataio.augmentation.Augmentation"
}
METHODS = {
    "kmeans": "speechbrain_ssl.clustering.kmeans.KMeans",
    "two_stage": "speechbrain_ssl.clustering.clusterers.TwoStage",
    "graph": "speechbrain_ssl.clustering.clusterers.Graph",
}
# Keys whose value may be a folder, beside those that end with _folder.
FOLDERS = set(
    "init_from face_init_from continue_from source transformer_source "
    "wavlm_source teacher cohort embeddings subtract_mean".split()
)
# What makes an encoder in a YAML; the last key is what heads refer to.
ENCODER = ("compute_features", "mean_var_norm", "embedding_model", "emb_dim")
ENCODER_FILE = "--encoder_file"
# In changes as YAML: the keys whose values take the place of those of the file,
# of which they otherwise keep what they do not name, if the class is the same.
REPLACED = "__replaced__"
# A value that begins with one of these is a piece of YAML.
YAML_BEGINS = ("[", "{", "(", "!", '"', "'")
CLOSING = {"[": "]", "{": "}", "(": ")"}


class OptionsError(ValueError):
    """The command line or the YAML file is wrong; the message says where."""


class Settings(dict):
    """Keys of a YAML file and the objects built for them.

    An OptionsError names a key that is asked for and that ``file`` does not
    have.
    """

    def __init__(self, file: str, values: Mapping):
        super().__init__(values)
        self.file = file

    def __missing__(self, key):
        raise OptionsError(
            f"{self.file} has no key '{key}', which the script needs."
            f"{_did_you_mean(key, list(self))} Compare it with the YAML files "
            "of the recipe."
        )


def load_experiment(
    argv: list | None = None,
) -> tuple[str, RunOptions, Settings, str]:
    """Reads the command line and builds what the YAML file describes.

    ``argv`` is ``[hparams_file, "--key", "value", "--key=value", "--flag",
    ...]``; ``sys.argv[1:]`` by default. Gives the YAML file; the run options
    for ``speechbrain.Brain`` and ``ddp_init_group``, in which ``precision`` is
    set even if neither command line nor YAML does; the YAML's keys and the
    objects built for them; and the changes as YAML, for
    ``speechbrain.create_experiment_directory``. An OptionsError says what is
    wrong.

    Example
    -------
    >>> file = getfixture("tmp_path") / "train.yaml"
    >>> _ = file.write_text("lr: 0.1\\nprecision: fp32\\n")
    >>> argv = [str(file), "--lr", "1e-3", "--device=cpu"]
    >>> _, run_opts, hparams, overrides = load_experiment(argv)
    >>> run_opts.device, hparams["lr"], overrides
    ('cpu', 0.001, 'lr: 1e-3')
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    file = _hparams_file(argv)
    tree = _read(file)
    _refuse_swallowed_keys(file, tree)
    _refuse_renamed(file, tree)
    arguments, encoder = _take_encoder(file, tree, argv[1:])
    given, run_options = _parse(file, tree, arguments)
    given = _with_encoder(encoder, given)
    for name, instead in REFUSED.items():
        if run_options.get(name):
            raise OptionsError(f"--{name} has no effect here. {instead}")
    overrides = "\n".join(f"{key}: {text}" for key, text in given.items())
    if encoder:
        overrides = f"{REPLACED}: [{', '.join(encoder)}]\n{overrides}"
    _check_overrides(file, tree, given)
    _check_placeholders(file, tree, given)
    hparams = Settings(file, _build(file, overrides))
    _suit_device(run_options, hparams)
    run_opts = RunOptions(
        **run_options, param_file=file, overridden_args=set(run_options)
    )
    return file, run_opts, hparams, overrides


def settings_of(hparams_file: str, overrides: str = "") -> dict:
    """Reads the settings in a YAML file, and makes no objects of them.

    ``overrides`` are changes as YAML. Values with a tag such as ``!new:`` or
    ``!ref`` are ``[tag, value]``, not resolved. Included files are read.

    Example
    -------
    >>> file = getfixture("tmp_path") / "train.yaml"
    >>> _ = file.write_text("lr: 0.1 # high\\nnet: !new:my.Net {dim: 8}\\n")
    >>> settings_of(file, "net: {dim: 9}")
    {'lr': 0.1, 'net': ['!new:my.Net', {'dim': 9}]}
    """
    return {
        key: _plain(value, pathlib.Path(hparams_file).parent)
        for key, value in _changed(hparams_file, overrides).items()
    }


def overrides_of(changes: Mapping[str, Any]) -> str:
    """Changes as YAML, from values as the command line has them.

    Text may be YAML with tags. The result is for ``settings_of`` and
    ``resolved``.

    Example
    -------
    >>> overrides_of({"net": "!new:my.Net {dim: 9}", "sizes": [1, 2]})
    'net: !new:my.Net {dim: 9}\\nsizes: [1, 2]'
    """
    return "\n".join(
        f"{key}: {_as_yaml(key, x if isinstance(x, str) else json.dumps(x))}"
        for key, x in changes.items()
    )


def resolved(hparams_file: str, overrides: str = "") -> str:
    """Text of a YAML with its changes, without references and inclusions.

    Example
    -------
    >>> file = getfixture("tmp_path") / "train.yaml"
    >>> _ = file.write_text("net: !new:my.Net {dim: 8}\\n")
    >>> print(resolved(file, "net: !new:your.Net {width: 9}"), end="")
    net: !new:your.Net {width: 9}
    """
    return resolve_references(_stream(hparams_file, overrides)).getvalue()


def _take_encoder(file, tree, arguments):
    """Arguments without --encoder_file; its keys, which are put in the tree."""
    rest, paths = [], []
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        name, equals, path = argument.partition("=")
        if name != ENCODER_FILE:
            rest.append(argument)
        elif equals or arguments:
            paths.append(path if equals else arguments.pop(0))
        else:
            raise OptionsError(f"{name} needs a value: {name} FILE.")
    if not paths:
        return rest, {}
    if len(paths) > 1:
        raise OptionsError(f"{ENCODER_FILE} is given twice. Keep one of them.")
    path = shipped.encoder_file(paths[0])
    if not os.path.isfile(path):
        raise OptionsError(
            f"{ENCODER_FILE} {path} is no file and none of "
            f"{', '.join(shipped.encoder_files())}."
        )
    other = _read(path)
    for where, keys in ((file, tree), (path, other)):
        missing = [key for key in ENCODER if key not in keys]
        if missing:
            raise OptionsError(
                f"{ENCODER_FILE} needs the keys {', '.join(ENCODER)} in both "
                f"files, but {where} has no {', '.join(missing)}."
            )
    encoder, todo = {}, list(ENCODER)
    while todo:
        key = todo.pop(0)
        # audio and its rate are the training's
        if key in encoder or (key == "sample_rate" and key in tree):
            continue
        if key not in other:
            raise OptionsError(f"{path} refers to '{key}', but has none.")
        encoder[key] = other[key]
        todo += _referred(other[key])
    tree.update(encoder)
    return rest, encoder


def nodes_of(node: Any) -> Iterator[Any]:
    """A node of a YAML tree and all below it."""
    yield node
    if isinstance(node, (Mapping, list)):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from nodes_of(child)


def class_of(node: Any) -> str:
    """Name after the colon in the tag of a node; empty if it has none."""
    return _tag(node).partition(":")[2]


def _referred(node):
    """Keys that a node refers to, at any depth."""
    return [
        key
        for part in nodes_of(node)
        if _tag(part) in ("!ref", "!copy")
        for key in re.findall(r"<(\w+)", str(part.value))
    ]


def _with_encoder(encoder, given):
    """Changes of an encoder file, and those of the command line to them."""
    changes: dict[str, Any] = dict(encoder)
    own = {key: given[key] for key in given if key in encoder}
    for key, text in own.items():
        _update(changes, _load_text(key, text))
    return {
        **{key: _text_of(key, node) for key, node in changes.items()},
        **{key: text for key, text in given.items() if key not in own},
    }


def _text_of(key, node):
    """A node as text that follows 'key: '."""
    stream = io.StringIO()
    yaml = ruamel.yaml.YAML()
    yaml.width = 4096
    yaml.dump({key: node}, stream)
    return stream.getvalue().partition(":")[2].strip()


def _stream(file, overrides):
    """A stream of a YAML file in which the changes are made."""
    stream: Any = io.StringIO()
    ruamel.yaml.YAML().dump(_changed(file, overrides), stream)
    stream.seek(0)
    stream.name = str(file)  # for hyperpyyaml: inclusions are relative to it
    return stream


def _changed(file, overrides):
    """The tree of a YAML file in which changes, which are YAML, are made."""
    tree = _read(file)
    changes = ruamel.yaml.YAML().load(overrides) or {}
    replaced = changes.pop(REPLACED, ())
    # first, as hyperpyyaml resolves a reference to a reference only above
    for place, key in enumerate(key for key in changes if key not in tree):
        tree.insert(place, key, changes[key])
    for key in replaced:
        tree[key] = changes.pop(key)
    _update(tree, changes)
    _expand_home(tree)
    return tree


def _expand_home(node):
    """Replaces ~/ at the start of texts, which shells leave in --key=~/path.

    A folder called ~ would be made.
    """
    is_list = isinstance(node, list)
    for key, value in list(enumerate(node) if is_list else node.items()):
        if isinstance(value, str):
            if value.startswith("~/"):
                node[key] = os.path.expanduser(value)
        elif isinstance(value, (Mapping, list)):
            _expand_home(value)
        elif _tag(value) == "!ref" and str(value.value).startswith("~/"):
            value.value = os.path.expanduser(value.value)


def _update(node, changes):
    """Changes keys of a mapping; a value with another tag replaces a mapping."""
    for key, value in changes.items():
        old = node.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        if both and not _replaces(value, old):
            _update(old, value)
        else:
            node[key] = value


def _replaces(new, old):
    """Whether a mapping replaces a node, instead of changing its keys."""
    return _tag(new) not in ("", _tag(old))


def _plain(node, folder):
    """A node of a YAML tree as plain Python values."""
    tag = _tag(node)
    if tag.startswith("!include:"):
        path = folder / tag.partition(":")[2]
        tree = _read(path)
        _update(tree, dict(node) if isinstance(node, dict) else {})
        return {k: _plain(v, path.parent) for k, v in tree.items()}
    if isinstance(node, Mapping):
        value = {str(key): _plain(inner, folder) for key, inner in node.items()}
    elif isinstance(node, list):
        value = [_plain(inner, folder) for inner in node]
    else:
        value = getattr(node, "value", node) if tag else node
        for kind in (float, int, str):  # ruamel's subclasses keep layout
            if isinstance(value, kind) and not isinstance(value, bool):
                value = kind(value)
    return [tag, value] if tag.startswith("!") else value


def run_option_types() -> dict:
    """Types of the run options that SpeechBrain takes on the command line."""
    types = typing.get_type_hints(RunOptions)
    return {
        name: types[name]
        for name in types
        if name in HELP_TEXTS or name in LIST_OPTIONS
    }


def _hparams_file(argv):
    if not argv or argv[0].startswith("-"):
        raise OptionsError(
            "The YAML file comes first, then options: "
            "train.py hparams/train.yaml --key value"
        )
    path = pathlib.Path(argv[0])
    if not path.is_file():
        siblings = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        raise OptionsError(
            f"There is no file {path}.{_did_you_mean(str(path), siblings)}"
        )
    return argv[0]


def _read(file):
    """Parses the YAML without building anything."""
    try:
        with open(file, encoding="utf-8") as stream:
            tree = ruamel.yaml.YAML().load(stream)
    except DuplicateKeyError as error:
        raise OptionsError(
            f"{file}, line {error.problem_mark.line + 1}: "
            f"{error.problem.splitlines()[0]}. Keep one of them."
        ) from error
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise OptionsError(_yaml_message(file, error)) from error
    if not isinstance(tree, Mapping) or not tree:
        raise OptionsError(f"{file} must consist of lines 'key: value'.")
    return tree


def _yaml_message(where, error):
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, MarkedYAMLError) and mark is not None:
        where = f"{where}, line {mark.line + 1}"
        error = error.problem.splitlines()[0]
    return f"{where} is not readable as YAML: {error}"


def _refuse_swallowed_keys(file, tree):
    """Other scripts read these YAMLs with SpeechBrain's own parser."""
    for key in tree:
        options = _beginning_with(str(key))
        if options and key not in run_option_types():
            raise OptionsError(
                f"{file}: the key '{key}' is the beginning of the run option "
                f"--{options[0]}, for which SpeechBrain would take --{key}. "
                "Rename the key."
            )


def _refuse_renamed(where, node):
    """Names what stands in place of keys and classes of earlier versions."""
    kind, _, what = _tag(node).partition(":")
    if what in RENAMED_CLASSES:
        raise OptionsError(
            f"{where}: {what} is now {RENAMED_CLASSES[what]}. See a YAML file "
            "of the recipe."
        )
    if isinstance(node, list):
        for inner in node:
            _refuse_renamed(where, inner)
    # other packages may use these names for something else
    ours = not what or what.startswith("speechbrain_ssl.")
    if isinstance(node, Mapping) and ours:
        for key, inner in node.items():
            if key in RENAMED:
                raise OptionsError(
                    f"{where}: the key '{key}' is now called '{RENAMED[key]}'."
                )
            _refuse_renamed(where, inner)
            _refuse_method(f"{where}: {key}", inner)


def _refuse_method(where, node):
    """Says what an earlier choice of a clusterer by name is now."""
    if not where.endswith("clusterer") or not isinstance(node, Mapping):
        return
    method = METHODS.get(str(node.get("method")))
    if method is not None:
        raise OptionsError(
            f"{where}: instead of method: {node['method']}, write the class: "
            f"!new:{method} {{n_clusters: NUMBER}}"
        )


def _beginning_with(name):
    options = sorted([*run_option_types(), "help"])
    return [option for option in options if option.startswith(name)]


def _parse(file, tree, arguments):
    """Returns key -> YAML text and run option -> value."""
    types = run_option_types()
    given, run_options = {}, {}
    arguments = list(arguments)
    while arguments:
        name, text = _take(file, arguments, tree, types)
        if name in given or name in run_options:
            raise OptionsError(f"--{name} is given twice. Keep one of them.")
        if name in types:
            run_options[name] = _convert(name, text, types[name])
        if name not in types or name in tree:
            given[name] = text if isinstance(text, str) else json.dumps(text)
            is_path = name.endswith("_folder") or name in FOLDERS
            if is_path and not given[name]:  # an unset variable of the shell
                raise OptionsError(f"--{name} is empty; expected a path.")
            given[name] = _as_yaml(name, given[name], is_path)
    return given, run_options


def _take(file, arguments, tree, types):
    """Takes a name and its value (text, or a list of texts) from the front."""
    argument = arguments.pop(0)
    if not argument.startswith("--") or argument == "--":
        raise OptionsError(
            f"'{argument}' belongs to no option. Options are --key value; a "
            "value with spaces needs quotation marks."
        )
    name, equals, text = argument[2:].partition("=")
    _check_name(file, name, tree, types)
    if name in LIST_OPTIONS:
        return name, text.split() if equals else _take_values(arguments)
    if equals:
        return name, text
    if not arguments or arguments[0].startswith("--"):
        if types.get(name) is bool or isinstance(tree.get(name), bool):
            return name, "true"
        raise OptionsError(
            f"--{name} needs a value: --{name} VALUE. (If it begins with --: "
            f"--{name}=VALUE.)"
        )
    return name, _take_bracketed(arguments)


def _take_values(arguments):
    values = []
    while arguments and not arguments[0].startswith("--"):
        values.append(arguments.pop(0))
    return values


def _take_bracketed(arguments):
    """Joins [1, 2] typed without quotation marks, as SpeechBrain does."""
    text = arguments.pop(0)
    closing = CLOSING.get(text[:1])
    while closing and not text.endswith(closing) and arguments:
        if arguments[0].startswith("--"):
            break
        text = f"{text} {arguments.pop(0)}"
    return text


def _check_name(file, name, tree, types):
    if name in types or name in tree:
        return
    if name in RENAMED:
        raise OptionsError(f"--{name} is now called --{RENAMED[name]}.")
    options = [f"--{option}" for option in _beginning_with(name)]
    if name and options:
        raise OptionsError(
            f"--{name} is no option; names are not completed. "
            f"Did you mean {' or '.join(options)}?"
        )
    outer, dot, inner = name.partition(".")
    if dot and outer in tree:
        hint = f' Write --{outer} "{{{inner}: VALUE}}".'
    else:
        known = [f"--{key}" for key in [*tree, *types]]
        hint = _did_you_mean(f"--{name}", known)
    raise OptionsError(f"--{name} is not a key of {file}.{hint}")


def _did_you_mean(name, known):
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _convert(name, text, kind):
    """Turns the text of a run option into its type."""
    if name in LIST_OPTIONS:
        return text
    choices = ()
    if typing.get_origin(kind) is typing.Literal:
        choices, kind = typing.get_args(kind), str
    elif typing.get_origin(kind) is typing.Union:  # Optional
        kind = typing.get_args(kind)[0]
        if text.lower() in ("none", "null"):
            return None
    try:
        truths = {"true": True, "false": False}
        value = truths.get(text.lower()) if kind is bool else kind(text)
    except ValueError:
        value = None
    if value is None or (choices and value not in choices):
        expected = ", ".join(choices) or {
            bool: "True or False",
            int: "a whole number",
            float: "a number",
        }.get(kind, kind.__name__)
        raise OptionsError(f"--{name} takes {expected}, not '{text}'.")
    return value


def _as_yaml(name, text, is_path=False):
    """The typed text as a value that fits after 'key: ' in a YAML file.

    Of a path, a number is text.
    """
    if text == "None":
        return "null"
    if text.startswith(YAML_BEGINS):
        text = " ".join(text.splitlines())
        _load_text(name, text)
        return text
    is_text = is_path or not _is_number_or_truth(text)
    if text in ("null", "~") or not is_text:
        return text
    # JSON is YAML, and shields what would end or change a plain YAML text.
    return json.dumps(text, ensure_ascii=False)


def _is_number_or_truth(text):
    if "#" in text or "\n" in text:
        return False
    try:
        value = ruamel.yaml.YAML().load(f"key: {text}")["key"]
    except YAMLError:
        return False
    return isinstance(value, (bool, int, float))


def _load_text(name, text):
    try:
        return ruamel.yaml.YAML().load(f"{name}: {text}")
    except YAMLError as error:
        raise OptionsError(
            f"--{name}: '{text}' is no YAML value: "
            f"{str(getattr(error, 'problem', error)).splitlines()[0]}."
        ) from error


def _check_overrides(file, tree, given):
    for name, text in given.items():
        value = _load_text(name, text)[name]
        _refuse_renamed(f"--{name}", value)
        _refuse_method(f"--{name}", value)
        if isinstance(value, Mapping):
            _check_mapping(file, f"--{name}", value, tree[name])


def _check_mapping(file, where, given, node, is_included=False):
    """Compares the keys of an override with those in the YAML."""
    if _replaces(given, node):
        if is_included:
            # hyperpyyaml would keep the old class and give it these arguments
            raise OptionsError(
                f"{where} cannot turn '{_tag(node)}' into '{_tag(given)}' in "
                f"an included file: change that in a copy of {file}."
            )
        node = given
    if not isinstance(node, Mapping):
        found = f"{_tag(node)} {getattr(node, 'value', node)}".strip()
        raise OptionsError(
            f"{where} is given as a mapping, but {file} has no mapping there "
            f"but {found}."
        )
    is_included |= _tag(node).startswith("!include:")
    known = _inner_keys(file, node)
    if node is given:
        known = _arguments(node)
    for key, value in given.items():
        if known is not None and key not in known:
            raise OptionsError(
                f"{where}: '{key}' is not a key of {file} there."
                f"{_did_you_mean(str(key), [str(k) for k in known])}"
            )
        if value == "None":
            raise OptionsError(
                f"{where}: write null, not None, for the value of '{key}'."
            )
        inner = known.get(key) if known else None
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            _check_mapping(file, f"{where}: {key}", value, inner, is_included)


def _inner_keys(file, node):
    """Key -> node; for an object also its arguments; None if all goes."""
    keys = dict(node)
    kind, _, what = _tag(node).partition(":")
    if kind == "!include":
        return {**_read(pathlib.Path(file).parent / what), **keys}
    if kind not in ("!new", "!name", "!apply", "!applyref"):
        return keys or None
    arguments = _arguments(node)
    return None if arguments is None else {**arguments, **keys}


def _arguments(node):
    """Arguments of an object with what is given; None if any is allowed."""
    try:
        found: Any = pydoc.locate(class_of(node))
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return None
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    return {name: node.get(name) for name in parameters}


def _tag(node):
    tag = getattr(node, "tag", None)
    return (getattr(tag, "value", None) or "") if tag is not None else ""


def _check_placeholders(file, tree, given):
    replaced = {key: _load_text(key, text)[key] for key, text in given.items()}
    missing = list(_placeholders(tree, replaced, ()))
    if missing:
        names = ", ".join(
            str(key) + "".join(f"[{inner}]" for inner in path)
            for key, *path in missing
        )
        options = " ".join(map(_option_for, missing))
        raise OptionsError(
            f"{file} needs a value for: {names}. Give it as {options}"
        )


def _placeholders(node, override, path):
    """Yields the path of each placeholder that no override replaces."""
    if _tag(node) == "!PLACEHOLDER":
        yield path
    elif isinstance(node, (Mapping, list)):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, inner in items:
            given = isinstance(override, Mapping) and key in override
            changed = override[key] if given else None
            is_changed = isinstance(changed, Mapping)
            if not given or (is_changed and not _replaces(changed, inner)):
                yield from _placeholders(inner, changed, (*path, key))


def _option_for(path):
    value = "VALUE"
    for key in reversed(path[1:]):
        value = f"{{{key}: {value}}}"
    return f'--{path[0]} "{value}"' if len(path) > 1 else f"--{path[0]} VALUE"


def _build(file, overrides):
    try:
        return load_hyperpyyaml(_stream(file, overrides))
    # torch and SpeechBrain refuse arguments by any kind of exception; the
    # traceback of a fault in a user's own code is printed by run_script
    except Exception as error:
        try:
            key, what = _place(file, overrides, error)
        except YAMLError:  # it is an included file that cannot be parsed
            mark = getattr(error, "problem_mark")  # noqa: B009
            raise OptionsError(_yaml_message(mark.name, error)) from error
        place = f"{file}: the key '{key}'" if key else file
        raise OptionsError(
            f"{place} cannot be built{f' ({what})' if what else ''}: "
            f"{_message(error)}{_sources(file, key, what, error)}"
            f"{_missing_module(file, what)}"
        ) from error


def _message(error):
    if isinstance(error, pydoc.ErrorDuringImport):
        return f"its module cannot be imported: {error.value}"
    if isinstance(error, MarkedYAMLError):
        if "'!ref'" in str(error.problem):
            return "a !ref leads back to itself."
        return error.problem
    if isinstance(error, OSError):
        return str(error)
    if not error.args:  # such as an assertion without a text
        line = traceback.extract_tb(error.__traceback__)[-1].line
        return f"{type(error).__name__} at `{line}`."
    # hyperpyyaml puts a line for each enclosing object in front.
    return str(error.args[-1])


def _missing_module(file, what):
    """Says how Python finds the module of a class, if it does not."""
    module = (what or "").partition(".")[0]
    known = module in sys.modules or not module
    if known or importlib.util.find_spec(module):
        return ""
    places = [pathlib.Path(file).resolve().parent, pathlib.Path.cwd()]
    found = [
        place
        for place in places
        if (place / f"{module}.py").is_file() or (place / module).is_dir()
    ]
    where = f"PYTHONPATH={found[0]}" if found else "PYTHONPATH"
    return (
        f" Python finds no module '{module}': install it, or put the folder "
        f"in which it lies on the path, {where}."
    )


def _sources(file, key, what, error):
    """Names the keys that a refused argument refers to."""
    argument = getattr(error, "argument", None)
    keys = dict.fromkeys(
        name
        for node in nodes_of(_read(file).get(key))
        if class_of(node) == what
        for name in _referred(
            node.get(argument)
            if argument and isinstance(node, Mapping)
            else node
        )
    )
    if not keys or (argument is None and len(keys) > 3):
        return ""
    names = ", ".join(f"'{name}'" for name in keys)
    return f" (It refers to {names}.)"


def _place(file, overrides, error):
    """Finds the key whose object was being built, and the object's name.

    hyperpyyaml's errors have neither, but its innermost constructor, which is
    still in the traceback, knows both the object and the line.
    """
    what = mark = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "hyperpyyaml.core":
            values = frame.f_locals
            mark = getattr(values.get("node"), "start_mark", mark)
            what = values.get("callable_string", what)
    mark = getattr(error, "problem_mark", None) or mark
    if mark is None:
        return None, None
    lines = resolved(file, overrides).splitlines()
    above = [text for text in lines[: mark.line + 1] if text[:1].strip(" #-}]")]
    return (above[-1].partition(":")[0] if above else None), what


def _suit_device(run_options, hparams):
    """Fills in precision and backend of the device, if the user gave none."""
    from speechbrain_ssl.runtime import default_precision

    device = run_options.get("device") or hparams.get("device")
    device = str(device or infer_device())
    given = {*run_options, *hparams}
    if not given & {"precision", "auto_mix_prec", "bfloat16_mix_prec"}:
        run_options["precision"] = default_precision(device)
    if not (device.startswith("cuda") or "distributed_backend" in given):
        run_options["distributed_backend"] = "gloo"  # NCCL needs GPUs
