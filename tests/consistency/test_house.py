"""The house: imports point down, everything is documented, nothing asserts."""

import ast
import pathlib
import re

import pytest

import speechbrain_ssl

PACKAGE = pathlib.Path(speechbrain_ssl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# the first entry that fits a module's path is its floor
FLOORS = [
    ("watch", -1),
    ("distributed", 0),
    ("checks", 0),
    ("devices", 0),
    ("extras", 0),
    ("files", 0),
    ("help", 0),
    ("hub", 0),
    ("shipped", 0),
    ("nnet/schedules", 1),
    ("checkpoints", 1),
    ("random_states", 1),
    ("options", 1),
    ("script", 1),
    ("runtime", 0),
    ("evaluation/trials", 2.5),  # opens audio
    ("evaluation/faces", 3),  # reads images
    ("evaluation/verification", 3),
    ("evaluation/selfcheck", 3.75),  # reads clusterings and statistics
    ("stages", 3),
    ("evaluation", 2),
    ("nnet", 2),
    ("dataio", 2),
    ("objectives", 3),
    ("clustering", 3),
    ("pseudo_labels", 3.5),  # reads clusterings
    ("testing", 3),
    ("brains/experiment", 5),
    ("brains", 4),
    ("safe_yaml", 1),
    ("card", 1),
    ("loading", 2.5),  # knows the rates of audio
    ("exporting", 4),
    ("adaptation", 4.5),
    ("inference", 5),
    ("report", 4),
    ("embed", 6),
    ("onnx", 5),
    ("push", 5),
    ("verify", 6),
    ("cli", 5),
    ("__main__", 6),
    ("__init__", 0),
]


def floor_of(name):
    path = name.replace(".", "/")
    return next(n for start, n in FLOORS if path.startswith(start))


def imports_of(path):
    """Modules of the package that a file imports, from its name on."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [
                node.module,
                *(f"{node.module}.{a.name}" for a in node.names),
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            target = PACKAGE.parent / (name.replace(".", "/") + ".py")
            if name.startswith("speechbrain_ssl.") and target.is_file():
                yield name.split(".", 1)[1]


def public_nodes(path):
    """Names and nodes that users may call, from the module down."""
    todo = [(path.stem, ast.parse(path.read_text()))]
    while todo:
        name, node = todo.pop()
        yield name, node
        if isinstance(node, ast.FunctionDef):
            continue
        todo += [
            (child.name, child)
            for child in node.body
            if isinstance(child, (ast.FunctionDef, ast.ClassDef))
            and not child.name.startswith("_")
            # what a base class of torch or SpeechBrain documents
            and not _is_override(child)
        ]


def _is_override(node):
    """Whether a decorator hands the documentation to another function."""
    return any(
        getattr(d, "id", getattr(d, "attr", "")) in {"setter", "overload"}
        for d in node.decorator_list
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_imports_point_down(path):
    name = str(path.relative_to(PACKAGE).with_suffix(""))
    for imported in imports_of(path):
        same_room = name.split("/")[0] == imported.split(".")[0]
        lower = floor_of(imported) < floor_of(name)
        # rooms may be shared by modules of one floor, objectives may not
        assert lower or (same_room and "objectives" not in name), (
            f"{name} imports {imported}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_everything_public_has_a_docstring(path):
    for name, node in public_nodes(path):
        assert ast.get_docstring(node), f"{path.name}: {name}"


def described(text):
    """Names in the section Arguments of a docstring."""
    section = text.partition("Arguments\n---------\n")[2]
    section = re.split(r"\n\w+\n---", section)[0]
    heads = re.findall(r"^(\*{0,2}\w[\w, *]*?)(?: :.*)?$", section, re.M)
    return {name.strip(" *") for head in heads for name in head.split(",")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_arguments_of_public_functions_are_described(path):
    """Those that there are, and no others."""
    # hooks of SpeechBrain and torch; y: scikit-learn passes it to fit_predict
    skipped = {"self", "cls", "mode", "stage", "ctx", "y"}
    for name, node in public_nodes(path):
        text = ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef) and "Arguments\n" in text:
            parts = node.args
            named = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]
            named += filter(None, [parts.vararg, parts.kwarg])
            found = {argument.arg for argument in named} - skipped
            place = f"{path.name}: {name}"
            assert described(text) - skipped == found, place


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_public_functions_are_annotated(path):
    """All arguments, and the result; mypy tests that the types are right."""
    for name, node in public_nodes(path):
        functions = [node] if isinstance(node, ast.FunctionDef) else []
        functions += [
            child
            for child in getattr(node, "body", [])
            if isinstance(node, ast.ClassDef)
            and getattr(child, "name", "") == "__init__"
        ]
        for function in functions:
            parts = function.args
            named = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]
            named += filter(None, [parts.vararg, parts.kwarg])
            bare = {a.arg for a in named if a.annotation is None}
            place = f"{path.name}: {name}"
            assert not bare - {"self", "cls"}, place
            assert function.returns or function.name == "__init__", place


def test_nothing_asserts_what_a_user_may_get_wrong():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"


def test_brains_know_no_objective():
    for path in (PACKAGE / "brains").glob("*.py"):
        assert not [n for n in imports_of(path) if n.startswith("objectives")]
