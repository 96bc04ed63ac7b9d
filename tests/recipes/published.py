"""Published values of the VoxCeleb recipes, and what our YAMLs have.

``recipes/VoxCeleb/SSL/published.yaml`` is the one source: a test holds each
YAML against it, and the tables of the recipe's README are made of it::

    > python -m tests.recipes.published
"""

import functools
import inspect
import pathlib
import pydoc
import re

import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/VoxCeleb/SSL"
TABLE = RECIPE / "published.yaml"
README = RECIPE / "README.md"
TRAINING = sorted((RECIPE / "hparams").glob("train_*.yaml"))
EMPTY = inspect.Parameter.empty
BEGIN, END = "<!-- made of published.yaml -->", "<!-- end -->"


def read_table():
    """The table, with the settings of the families that recipes name.

    A recipe's own sources replace those of its family.
    """
    table = yaml.safe_load(TABLE.read_text())
    for recipe in table["recipes"].values():
        settings = {}
        for family in recipe.get("families", []):
            settings.update(table["families"][family])
        settings.update(recipe["settings"])
        recipe["settings"] = {
            place: as_entry(value, recipe["sources"])
            for place, value in settings.items()
        }
    return table


def as_entry(value, sources):
    """[value, source] as a mapping, with the source of the recipe."""
    if not isinstance(value, dict):
        value = dict(zip(("published", "source"), value))
    source = value.get("source")
    return {**value, "source": sources.get(source, source)}


@functools.lru_cache
def document(path):
    """The root node of a YAML, with references to numbers resolved."""
    text = path.read_text().replace("!PLACEHOLDER", "placeholder")
    return yaml.compose(resolve_references(text).getvalue())


def settings_of(path):
    """All values of a YAML by their paths, such as ``opt_class.lr``.

    The class or function that a key is made of has the path of the key, and
    its arguments come below. Objects that are named again are left out there.
    """
    found, seen = {}, set()

    def walk(place, node):
        if isinstance(node, yaml.ScalarNode):
            found[place] = value_of(node)
            return
        if id(node) in seen:
            return
        seen.add(id(node))
        if node.tag.startswith("!") and ":" in node.tag:
            found[place] = node.tag.partition(":")[2].rpartition(".")[2]
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                walk(f"{place}.{key.value}" if place else key.value, child)
        elif all(isinstance(x, yaml.ScalarNode) for x in node.value):
            found[place] = [value_of(x) for x in node.value]
        else:
            found[place] = plain(node)

    walk("", document(path))
    return found


def plain(node):
    """A list or mapping as Python has it; objects by their class."""
    if isinstance(node, yaml.ScalarNode):
        return value_of(node)
    if isinstance(node, yaml.SequenceNode):
        return [plain(child) for child in node.value]
    if node.tag.startswith("!") and ":" in node.tag:
        return node.tag.rpartition(".")[2]
    return {key.value: plain(child) for key, child in node.value}


def value_of(node):
    """A number, truth value, text or null."""
    if node.tag.startswith("!"):
        return f"{node.tag.rpartition('.')[2]}{node.value and ': '}{node.value}"
    return yaml.SafeLoader("").construct_object(node)


def node_at(path, place):
    """The node of a setting, or None."""
    node = document(path)
    for name in place.split("."):
        children = node.value if isinstance(node, yaml.MappingNode) else []
        found = [child for key, child in children if key.value == name]
        if not found:
            return None
        (node,) = found
    return node


def default_of(path, place):
    """The default of an argument that a YAML leaves out, or ``EMPTY``."""
    parent, _, name = place.rpartition(".")
    node = node_at(path, parent) if parent else None
    if node is None or ":" not in node.tag:
        return EMPTY
    made = pydoc.locate(node.tag.partition(":")[2])
    parameters = inspect.signature(made).parameters
    return parameters[name].default if name in parameters else EMPTY


def build(path, place):
    """Builds one value of a YAML, such as a schedule, without the rest."""
    node = node_at(path, place)
    if isinstance(node, yaml.ScalarNode) and not node.tag.startswith("!"):
        return value_of(node)
    key = yaml.ScalarNode("tag:yaml.org,2002:str", "built")
    root = yaml.MappingNode("tag:yaml.org,2002:map", [(key, node)])
    return load_hyperpyyaml(yaml.serialize(root))["built"]


def same(published, ours):
    """Whether two values are the same, as numbers where they are numbers."""
    if isinstance(published, bool) or isinstance(ours, bool):
        return published is ours
    if published == ours:
        return True
    if isinstance(published, list) and isinstance(ours, (list, tuple)):
        pairs = zip(published, ours)
        return len(published) == len(ours) and all(same(*p) for p in pairs)
    if isinstance(published, dict) and isinstance(ours, dict):
        return published.keys() == ours.keys() and all(
            same(published[key], ours[key]) for key in published
        )
    try:
        return abs(float(published) - float(ours)) <= 1e-3 * abs(float(ours))
    except (TypeError, ValueError):
        return False


def is_apparatus(place, ours, table):
    """Whether a setting is none of a method: paths, logs, memory."""
    unused = ours.get("cluster_from") == float("inf") and (
        place.startswith("cluster_") or place == "view_sampler.partners"
    )
    unclipped = ours["max_grad_norm"] == float("inf")
    unused = unused or (unclipped and place == "clip_each_tensor")
    return unused or any(re.fullmatch(x, place) for x in table["apparatus"])


def faults(path, table):
    """What a YAML and the table say otherwise, in words."""
    recipe = table["recipes"].get(path.stem)
    if recipe is None:
        return [f"{path.stem} is not in published.yaml"]
    ours, found = dict(settings_of(path)), []
    for place in recipe["settings"]:
        if place not in ours and place[0] != "(":
            value = default_of(path, place)
            if value is not EMPTY:
                ours[place] = value
    for place, value in ours.items():
        entry = recipe["settings"].get(place)
        if entry is None and is_apparatus(place, ours, table):
            continue
        if entry is None:
            found.append(
                f"{place}: {value!r} is neither published nor declared"
            )
        elif not same(entry.get("ours", entry.get("published")), value):
            found.append(f"{place}: the table has {entry}, the YAML {value!r}")
        elif "ours" in entry and not (entry.get("why") and entry.get("then")):
            found.append(f"{place}: a difference needs why and then")
    for place, entry in recipe["settings"].items():
        if entry["source"] not in table["sources"]:
            found.append(f"{place}: no such source {entry['source']!r}")
    # beside the keys of a YAML, the table may have facts without a key
    stale = [
        x for x in recipe["settings"] if x not in ours and not x.startswith("(")
    ]
    return found + [f"{place} is in the table only" for place in stale]


def shown(value):
    """A value as a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value).replace("|", "\\|")


def tables_of_readme(table):
    """The part of the README that the table makes."""
    lines = []
    for name, recipe in table["recipes"].items():
        lines += ["", f"### {name}", "", f"{recipe['reproduces']}", ""]
        lines += ["| setting | published | ours | why | consequence |"]
        lines += ["|---|---|---|---|---|"]
        equal = []
        for place, entry in recipe["settings"].items():
            if "ours" not in entry:
                value = shown(entry["published"])
                equal.append(f"`{place}` {value} [{entry['source']}]")
                continue
            cells = [f"`{place}`", entry.get("published", "not public")]
            cells += [entry["ours"], entry["why"], entry["then"]]
            lines.append("| " + " | ".join(map(shown, cells)) + " |")
        lines += ["", f"As published: {'; '.join(equal)}.", ""]
    lines += [
        "### Sources",
        "",
        "| source | where | evidence |",
        "|---|---|---|",
    ]
    for name, source in table["sources"].items():
        lines.append(f"| {name} | {source['where']} | {source['tag']} |")
    return "\n".join([BEGIN, *lines, "", END])


def readme_with_tables(table):
    """The README's text with the tables as they should be."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    return before + tables_of_readme(table) + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(readme_with_tables(read_table()))
