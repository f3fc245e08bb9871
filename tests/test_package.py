"""The package as a whole: light to import, and built as the house rules say."""

import ast
import json
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

import na_ssl_hf

SOURCE = Path(na_ssl_hf.__file__).parent
HUB_FILES = sorted((SOURCE / "hub").glob("*.py"))
# Outside of `try`, code that travels with a checkpoint may need these only.
HUB_PACKAGES = {"torch", "numpy", "transformers", "safetensors", "huggingface_hub"}
# Every folder is one idea, and imports only point down this list.
HOUSE = [
    "cli",
    "demo",
    "app",
    "watch",
    "fleet",
    "evaluation",
    "training",
    "simulation",
    "data",
    "export",
    "convert",
    "checkpoints",
    "registration",
    "tables",
    "hub",
    "one_thread",
    "quiet_checkpoints",
]


def imports(path: Path, guarded: bool = True):
    """`(level, module, names)` of every import of a file, without those inside `try` unless `guarded`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    inside = {id(node) for attempt in tries for part in attempt.body for node in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in inside and not guarded:
            continue
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def in_new_process(code: str, *options: str) -> str:
    """What `code` prints in a process of its own."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_import_loads_neither_torch_nor_transformers():
    code = """
import sys, json
import na_ssl_hf
loaded = sorted(sys.modules)
names = [name in dir(na_ssl_hf) for name in [*na_ssl_hf.__all__, "__version__"]]
print(json.dumps([loaded, all(names), len(sys.modules) - len(loaded), na_ssl_hf.__version__]))
"""
    loaded, names_are_listed, loaded_by_dir, version = json.loads(in_new_process(code))
    assert not {"torch", "transformers", "numpy", "scipy", "huggingface_hub"} & set(loaded)
    own = {name for name in loaded if name.startswith("na_ssl_hf")}
    assert own == {"na_ssl_hf", "na_ssl_hf.registration"}
    assert names_are_listed
    assert loaded_by_dir == 0
    assert version == na_ssl_hf.__version__


def test_subpackages_are_loaded_when_they_are_used():
    code = """
import sys, json
import transformers.pipelines, transformers.processing_utils
before = set(sys.modules)
import na_ssl_hf
brought = sorted({name.split(".")[0] for name in set(sys.modules) - before} | {"scipy.stats"} & set(sys.modules))
lazy = [name for name in sys.modules if name.startswith("na_ssl_hf.") and ".hub" not in name]
heavy = {name: name in sys.modules for name in ("pyroomacoustics", "matplotlib", "datasets", "peft", "pandas")}
for name in ("convert", "data", "evaluation", "export", "simulation", "training"):
    assert getattr(na_ssl_hf, name).__name__ == f"na_ssl_hf.{name}"
    assert name in dir(na_ssl_hf)
print(json.dumps([brought, lazy, heavy]))
"""
    brought, lazy, heavy = json.loads(in_new_process(code, "-W", "error::DeprecationWarning:na_ssl_hf"))
    # transformers itself imports soxr and soundfile where they are installed, and accelerate and parts of scipy.
    forbidden = {"pyroomacoustics", "matplotlib", "datasets", "peft", "accelerate", "scipy.stats", "pandas", "sklearn"}
    assert not forbidden & set(brought)
    assert not any(heavy.values()), heavy
    assert lazy == ["na_ssl_hf.registration"]


# A new process imports the two packages in either order, and transformers from any of its ends: its modules load each
# other halfway through, and our files need some of those.
FIRST_IMPORTS = [
    "import na_ssl_hf",
    "import transformers; import na_ssl_hf",
    "from transformers import pipeline; import na_ssl_hf",
    "import na_ssl_hf; from transformers import pipeline",
    "import na_ssl_hf; import transformers.modeling_layers",
    "from na_ssl_hf.hub.modeling_noise_aware import NAEatModel",
]


@pytest.mark.parametrize("first_imports", FIRST_IMPORTS)
def test_transformers_knows_our_classes_whichever_is_imported_first(first_imports):
    code = """
import json, sys
from transformers import AutoConfig, AutoModel
types = ["beats", "dasheng", "eat", "na-beats", "na-dasheng", "na-eat", "dcase-autoencoder"]
models = [AutoModel._model_mapping[type(AutoConfig.for_model(name))].__name__ for name in types]
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
extractors = {FEATURE_EXTRACTOR_MAPPING[type(AutoConfig.for_model(name))].__name__ for name in types[:-1]}
from transformers.pipelines import PIPELINE_REGISTRY
task = PIPELINE_REGISTRY.check_task("anomaly-scoring")[1]["impl"].__name__
finders = [finder for finder in sys.meta_path if type(finder).__module__.startswith("na_ssl_hf")]
print(json.dumps([models, list(extractors), task, len(finders)]))
"""
    models, extractors, task, num_finders = json.loads(in_new_process(f"{first_imports}\n{code}"))
    assert models == [
        *("BeatsModel", "DashengModel", "EatModel", "NABeatsModel", "NADashengModel", "NAEatModel"),
        "AutoencoderModel",
    ]
    assert (extractors, task) == (["TwoChannelFeatureExtractor"], "AnomalyScorer")
    assert num_finders == 0  # all is registered, so that nothing is left to watch


def test_all_names_exist_and_unknown_ones_do_not():
    for name in na_ssl_hf.__all__:
        assert getattr(na_ssl_hf, name) is not None
    assert na_ssl_hf.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = na_ssl_hf.nothing


@pytest.mark.parametrize("model_type", ["beats", "dasheng", "eat", "na-beats", "na-dasheng", "na-eat"])
def test_auto_classes_know_the_types(model_type):
    config = AutoConfig.for_model(model_type, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert type(config).__module__.startswith("na_ssl_hf.hub.")
    assert AutoModel._model_mapping[type(config)].config_class is type(config)
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

    assert FEATURE_EXTRACTOR_MAPPING[type(config)] is na_ssl_hf.TwoChannelFeatureExtractor
    assert AutoFeatureExtractor is not None


def test_task_is_registered_for_auto_model():
    task = PIPELINE_REGISTRY.check_task("anomaly-scoring")[1]
    assert task["impl"] is na_ssl_hf.AnomalyScorer
    assert task["pt"] == (AutoModel,)


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_hub_files_travel_alone(path):
    assert path.parent == SOURCE / "hub"
    for level, module, names in imports(path):
        assert level <= 1, f"{path.name} leaves hub/ with {'.' * level}{module}"
        if level == 1:
            # `from . import x` and `from .a.b import x` are not followed when code is copied to a checkpoint.
            assert module.isidentifier(), f"{path.name}: from {'.' * level}{module} import ..."
            assert (SOURCE / "hub" / f"{module}.py").is_file()
            assert "*" not in names
        assert level or module.split(".")[0] != "na_ssl_hf", path.name
    packages = {module.split(".")[0] for level, module, _ in imports(path, guarded=False) if not level}
    assert packages <= HUB_PACKAGES | sys.stdlib_module_names, path.name
    # The copying reads text, not code: a docstring that looks like a relative import would be followed, too.
    looks = re.findall(r"^\s*(?:from\s+\.\S*\s+import|import\s+\.\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(looks) == sum(level > 0 for level, _, _ in imports(path)), path.name


def test_hub_is_flat():
    folders = [path.name for path in (SOURCE / "hub").iterdir() if path.is_dir()]
    assert set(folders) <= {"__pycache__"}


def house_imports(folder: str):
    """`(file, imported folder)` for every import of another folder of the house."""
    files = [SOURCE / f"{folder}.py"] if (SOURCE / f"{folder}.py").is_file() else (SOURCE / folder).rglob("*.py")
    for path in files:
        depth = len(path.relative_to(SOURCE).parts)
        for level, module, names in imports(path):
            parts = module.split(".")
            if level == 0 and parts[0] == "na_ssl_hf":
                inside = parts[1:]
            elif level == depth:
                inside = parts if module else []
            else:
                continue
            for target in [inside[0]] if inside else names:
                if target in HOUSE and target != folder:
                    yield path.relative_to(SOURCE).as_posix(), target


def house_folders():
    for name in HOUSE:
        if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file():
            yield name


@pytest.mark.parametrize("folder", list(house_folders()))
def test_imports_point_down_the_house(folder):
    above = HOUSE[: HOUSE.index(folder)]
    assert [pair for pair in house_imports(folder) if pair[1] in above] == []


def house_modules() -> dict[str, Path]:
    """Every module of the package with its file."""
    names = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_when_loaded(module: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that `module` imports while it is itself imported: not in functions, not for types."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(names & modules.keys() or {base})
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)
    return found & modules.keys() - {module}


def test_modules_do_not_import_each_other_in_circles():
    modules = house_modules()
    graph = {module: imports_when_loaded(module, path, modules) for module, path in modules.items()}
    assert sum(map(len, graph.values())) > len(graph)  # the imports were found
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_hub_has_few_files():
    assert len([path for path in HUB_FILES if path.stem != "__init__"]) <= 40


def functions_over(lines: int):
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > lines:
                    yield f"{path.relative_to(SOURCE).as_posix()}: {node.name}"


def test_functions_fit_on_a_page():
    assert list(functions_over(80)) == []
    assert list(functions_over(40))  # the lines are counted


def test_models_say_their_base_themselves():
    """The base of a noise-aware model is a field of its class, not a part of its name."""
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    assert [path.name for path, text in texts.items() if re.search(r"""removeprefix\(['"]na-['"]\)""", text)] == []


def test_wheel_trains(tmp_path):
    """What the build copies into the wheel runs `na-ssl train` without the repository."""
    (tmp_path / "egg").mkdir()
    build = ["setup.py", "-q", "egg_info", "--egg-base", tmp_path / "egg", "build_py", "--build-lib", tmp_path / "lib"]
    done = subprocess.run([sys.executable, *build], cwd=SOURCE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    code = """
import na_ssl_hf.cli, na_ssl_hf.checkpoints
from na_ssl_hf.cli.train import SCRIPTS, script_path
print(na_ssl_hf.checkpoints.shipped_checkpoint("na-beats-tiny"))
for script, _, _ in SCRIPTS.values():
    print(script_path(script))
na_ssl_hf.cli.main(["train", "pretrain", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint, *scripts = done.stdout.splitlines()[:4]
    package = tmp_path / "lib" / "na_ssl_hf"
    assert Path(checkpoint) == package / "checkpoints" / "na-beats-tiny"
    assert {Path(script).parent for script in scripts} == {package / "training_scripts"}
    assert "usage: na-ssl train pretrain" in done.stdout
