"""What the source never does: unpickle, run code from files, unpack archives, record the environment."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("storyteller_ds", "kernels", "launch")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if "testing" not in path.parts
]
UNPICKLING = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "h5py"}
UNPACKING = {"zipfile", "tarfile", "gzip", "bz2", "zlib"}
UNPACKS_TEXT = REPOSITORY / "storyteller_ds" / "data" / "sources" / "utf8_stream.py"
"""The only file that unpacks: single files, piece by piece, into text."""
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
READING_ARRAYS = {f"{module}.{name}" for module in ("np", "numpy") for name in ("load", "loadtxt", "genfromtxt")}
NEVER_TRUE = {"allow_pickle", "trust_remote_code", "shell"}
"""Arguments that calls may set to False only."""


def name_of(node: ast.AST) -> str:
    """The dotted name of an expression such as a.b.c."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def in_call(node: ast.Call) -> Iterator[str]:
    name = name_of(node.func)
    arguments = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
    if name in RUNNING | READING_ARRAYS or name == "shutil.unpack_archive":
        yield name
    if name == "torch.load" and arguments.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name == "YAML" and arguments.get("typ") != "safe":
        yield "YAML that is not safe"
    yield from (flag for flag in NEVER_TRUE & arguments.keys() if arguments[flag] is not False)


def is_one_variable(node: ast.Attribute, parent: ast.AST, grandparent: ast.AST) -> bool:
    """Whether os.environ is only asked for a name or the names, or passed to a process or a check, not recorded."""
    if isinstance(parent, ast.Attribute):
        return parent.attr in ("get", "setdefault", "update", "pop", "keys")
    if isinstance(parent, ast.Dict):  # env={**os.environ, ...}
        target = grandparent.arg if isinstance(grandparent, ast.keyword) else name_of(grandparent.targets[0])
        return target in ("env", "environment")
    if isinstance(parent, ast.Call):
        return name_of(parent.func) == "check_exported_environment"
    return isinstance(parent, ast.Subscript | ast.arguments)  # os.environ["NAME"], a default argument


def found_in(source: str) -> list[str]:
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found: list[str] = []
    for node in ast.walk(tree):
        found += sorted(imported(node) & (UNPICKLING | UNPACKING))
        if isinstance(node, ast.Call):
            found += in_call(node)
        if name_of(node) == "os.environ" and not is_one_variable(node, parents[node], parents[parents[node]]):
            found.append("os.environ as a whole")
    return found


def test_the_source_does_none_of_it():
    assert len(SOURCES) > 100
    wrong = {path: found for path in SOURCES if (found := found_in(path.read_text(encoding="utf-8")))}
    assert set(wrong.pop(UNPACKS_TEXT)) == {"bz2", "gzip", "zlib"}
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import yaml",
        "import tarfile",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "load(path, allow_pickle=True)",
        "load_dataset(name, trust_remote_code=flag)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "YAML().load(text)",
        "json.dumps(dict(os.environ))",
        "print(os.environ)",
        "config['env'] = {**os.environ}",
        "for name in os.environ: pass",
        "os.environ.items()",
        "os.environ.copy()",
    ],
)
def test_the_search_finds_each(source):
    # Control for the test above.
    assert found_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "model.eval()",
        "re.compile(text)",
        "os.environ.get('HOME')",
        "os.environ['HOME']",
        "subprocess.run(command, env={**os.environ, 'A': '1'})",
        "YAML(typ='safe', pure=True)",
    ],
)
def test_the_search_lets_the_rest_pass(source):
    assert not found_in(source)


def test_only_the_class_of_an_error_is_taken_from_pyyaml():
    # `datasets` reads cards with it. It is imported by name, so the search above does not see it.
    uses = [path for path in SOURCES if 'import_module("yaml")' in path.read_text(encoding="utf-8")]
    assert [path.name for path in uses] == ["datasets_library.py"]
    assert 'import_module("yaml").YAMLError' in uses[0].read_text(encoding="utf-8")
