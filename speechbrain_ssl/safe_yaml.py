"""Builds the objects of a foreign HyperPyYAML file without running its code.

``load_hyperpyyaml`` calls whatever the file names: ``!apply:os.system`` is
enough. Here only classes of networks are built, from the modules of ``MODULES``
and those that the user trusts; every other tag is refused before anything is
built, wherever it stands.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import ruamel.yaml
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

# Networks of these modules are built. None of their constructors reads a file,
# opens a connection or calls a function by its name: speechbrain.lobes.models
# has others that do, so the encoders are listed one by one.
MODULES = (
    "torch.nn",
    "speechbrain.lobes.features",
    *(
        f"speechbrain.lobes.models.{name}"
        for name in (
            "CRDNN Cnn14 ContextNet ECAPA_TDNN ResNet VanillaNN Xvector "
            "convolution transformer"
        ).split()
    ),
    "speechbrain.nnet",
    "speechbrain.processing.features",
    "speechbrain_ssl.nnet.encoders",
    "speechbrain_ssl.nnet.face",
    "speechbrain_ssl.nnet.mhfa",
    "speechbrain_ssl.nnet.transformer",
)
# other classes that model folders hold; they only keep their arguments
CLASSES = (
    "speechbrain.dataio.encoder.CategoricalEncoder",
    "speechbrain.dataio.preprocess.AudioNormalizer",
    "speechbrain.utils.parameter_transfer.Pretrainer",
)
# arguments of these classes that make them read or download files
REFUSED_ARGUMENTS = {
    "speechbrain_ssl.nnet.transformer.PretrainedTransformer": frozenset(
        ("source", "save_path")
    )
}
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in "bool float int map merge null omap seq set str".split()
}
REFERENCE_TAGS = ("!ref", "!copy")
MOST_NODES = 100_000
# what the message about a class ends with, and its name
HINT = " If you know and trust it: --trust "
TUPLE = re.compile(r"\(.*\)", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class UnsafeError(ValueError):
    """A YAML file names code that is not allowed to run."""


def check(text: str, origin: str, trust: Sequence[str] = ()) -> None:
    """Refuses a file that names anything but networks.

    ``origin`` is its path, for messages; ``trust`` names modules or classes
    that the user allows beside those of this module.
    """
    for node in _nodes(_compose(text, origin)):
        tag = _tag(node)
        if tag.startswith(("!new:", "!name:")):
            _find_class(node, origin, trust)
        elif _is_tuple(node):
            _tuple(node, origin)
        elif tag not in (*PLAIN_TAGS, *REFERENCE_TAGS):
            raise _unsafe(node, origin)


def build(
    text: str,
    origin: str,
    keys: Iterable[Sequence[str]],
    trust: Sequence[str] = (),
    sources: bool = False,
) -> list[Any]:
    """Builds some objects of a file, and nothing else of it.

    An object is a key of the file, and keys inside of it; None where there is
    no such key. ``sources`` allows networks from files or the hub, for a
    training run of the user's own. See ``check`` for the other arguments.
    """
    for node in _nodes(_compose(text, origin)):
        # the only tags that resolving references acts upon
        if _tag(node).startswith(("!include", "!applyref")):
            raise _unsafe(node, origin)
    try:
        resolved = resolve_references(text).getvalue()
    except (ValueError, TypeError, YAMLError, RecursionError) as error:
        raise ValueError(f"{origin} cannot be read: {error}") from error
    builder = _Builder(origin, trust, sources)
    root = _compose(resolved, origin)
    return [builder.build(_child(root, path)) for path in keys]


class _Builder:
    """Builds nodes, each of them once; ``sources`` allows REFUSED_ARGUMENTS."""

    def __init__(self, origin, trust, sources):
        self.origin, self.trust, self.sources = origin, trust, sources
        self.plain = ruamel.yaml.YAML(typ="safe", pure=True).constructor
        self.built = {}

    def build(self, node):
        """The object of a node; a node with two aliases is one object."""
        if node is None:
            return None
        if id(node) not in self.built:
            # the node is kept, or another one could get its id
            self.built[id(node)] = node, self._build(node)
        return self.built[id(node)][1]

    def _build(self, node):
        tag = _tag(node)
        if tag.startswith(("!new:", "!name:")):
            return self._call(node)
        if _is_tuple(node):
            return _tuple(node, self.origin)
        if tag not in PLAIN_TAGS:
            raise _unsafe(node, self.origin)
        if isinstance(node, MappingNode):
            return self._mapping(node)
        if isinstance(node, SequenceNode):
            return [self.build(child) for child in node.value]
        return self.plain.construct_object(node)

    def _mapping(self, node):
        """A dictionary, with what merge keys add to it."""
        self.plain.flatten_mapping(node)
        found = {}
        for key, value in node.value:
            name = self.build(key)
            if not isinstance(name, Hashable):
                raise ValueError(
                    f"{self.origin}: expected a word or a number as key, "
                    f"found {name!r}"
                )
            found[name] = self.build(value)
        return found

    def _call(self, node):
        """A class with its arguments, or an instance of it."""
        found = _find_class(node, self.origin, self.trust)
        args, kwargs = [], {}
        if isinstance(node, MappingNode):
            kwargs = self._mapping(node)
        elif isinstance(node, SequenceNode):
            args = [self.build(child) for child in node.value]
        refused = REFUSED_ARGUMENTS.get(_name(node), frozenset())
        if not self.sources and (args and refused or refused & kwargs.keys()):
            raise UnsafeError(
                f"{self.origin}: {found.__qualname__} must not get "
                f"{' or '.join(sorted(refused))} in a model folder: it would "
                "read or download files"
            )
        try:
            if _tag(node).startswith("!new:"):
                return found(*args, **kwargs)
            return functools.partial(found, *args, **kwargs)
        except Exception as error:  # classes raise any kind
            raise ValueError(
                f"{self.origin}: {found.__qualname__} cannot be built: "
                f"{type(error).__name__}: {error}"
            ) from error


def _compose(text, origin):
    """The tree of a YAML file, with no object built."""
    try:
        root = ruamel.yaml.YAML(typ="safe", pure=True).compose(text)
        nodes = _size(root, {}) if root is not None else 0
    except (YAMLError, RecursionError) as error:
        raise ValueError(f"{origin} is no YAML: {error}") from error
    if not isinstance(root, MappingNode):
        raise ValueError(f"{origin} has no keys")
    if nodes > MOST_NODES:
        raise UnsafeError(
            f"{origin} has {nodes:g} nodes where its aliases are followed; "
            f"expected {MOST_NODES} at most"
        )
    return root


def _children(node):
    """The nodes below a node, the keys of mappings included."""
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _size(node, sizes):
    """Number of nodes of a tree; one with two aliases counts twice."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # if it contains itself
        below = sum(_size(child, sizes) for child in _children(node))
        sizes[id(node)] = 1 + below
    return sizes[id(node)]


def _nodes(root):
    """All nodes of a tree, each of them once."""
    found, todo = {}, [root]
    while todo:
        node = todo.pop()
        if id(node) not in found:
            found[id(node)] = node
            todo += reversed(_children(node))
    return found.values()


def _child(node, path):
    """The node below some keys, or None."""
    for key in path:
        if not isinstance(node, MappingNode):
            return None
        found = [value for name, value in node.value if name.value == key]
        if not found:
            return None
        node = found[-1]
    return node


def _tag(node):
    """The tag of a node, as text."""
    return str(node.tag or "")


def _name(node):
    """The name in the tag of a node, such as torch.nn.Linear."""
    return _tag(node).partition(":")[2]


def _find_class(node, origin, trust):
    """The class that a tag names, if it may be built."""
    name = _name(node)
    if not NAME.fullmatch(name):
        raise _unsafe(node, origin)
    trusted = _below(name, trust)
    if not trusted and not _below(name, MODULES) and name not in CLASSES:
        raise _unsafe(node, origin)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # imports raise any kind
        raise ValueError(
            f"{origin}, line {node.start_mark.line + 1}: {name} cannot be "
            f"imported: {error}"
        ) from error
    if trusted and inspect.isclass(found):
        return found
    # a module also has what it imports: its own networks only
    own = f"{getattr(found, '__module__', '')}.{attribute}"
    if not inspect.isclass(found) or not (
        own in CLASSES
        or _below(own, MODULES)
        and issubclass(found, torch.nn.Module)
    ):
        raise _unsafe(node, origin)
    return found


def _below(name, modules):
    """Whether a name is in one of some modules, or one of the names."""
    return any(name == m or name.startswith(f"{m}.") for m in modules)


def _is_tuple(node):
    """Whether HyperPyYAML reads a scalar as a tuple."""
    plain = isinstance(node, ScalarNode) and not node.style
    return _tag(node) == "!tuple" or bool(plain and TUPLE.fullmatch(node.value))


def _tuple(node, origin):
    """A tuple, which HyperPyYAML reads by a loader that runs code."""
    try:
        return tuple(
            ruamel.yaml.YAML(typ="safe", pure=True).load(
                f"[{node.value[1:-1]}]"
            )
        )
    except YAMLError as error:
        raise UnsafeError(
            f"{origin}, line {node.start_mark.line + 1}: {node.value} is no "
            "tuple of numbers and words"
        ) from error


def _unsafe(node, origin):
    """The error for a tag that is not allowed."""
    tag = _tag(node).replace("tag:yaml.org,2002:", "!!")
    kind, _, name = tag.partition(":")
    message = (
        f"{origin}, line {node.start_mark.line + 1}: {tag} is not allowed. The "
        "file of a model may only build networks of torch.nn, SpeechBrain and "
        "speechbrain_ssl, because all else could run any code on this machine."
    )
    if kind in ("!new", "!name") and name:
        message += f"{HINT}{name}"
    return UnsafeError(message)
