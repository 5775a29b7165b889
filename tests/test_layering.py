"""The house rules that a machine can check: one-way flow, relative imports, where `comfy` may appear."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A file of difflora/ may import only from files that stand before it.
FLOW = (
    *("errors", "files", "photos", "layout"),
    *("unet_names", "model_family", "base_sketch"),
    *("lora_keys", "adapter_config", "lora_metadata", "lora_sidecar", "lora", "lora_edit", "block_weights"),
    *("patch", "batched"),
    *(
        "picture_decoder",
        "picture_autoencoder",
        "pipelines",
        "text_features",
        "base_model",
        "lora_training",
        "picture_loss",
    ),
    *(
        "controls",
        "normalisation",
        "linear_path",
        "autoencoder",
        "onnx_header",
        "face_packs",
        "providers",
        "face_models",
        "faces",
        "face_quality",
        "vision_tower",
        "features",
        "latents",
        "diffusion",
        "linear_prior",
        "mixing",
        "transformer",
        "references",
        "likeness",
        "hypernetwork",
    ),
    *("checkpoint", "model", "identity", "candidates", "refinement", "batch"),
    # the embedded world, a user of the library like any other
    *("synthetic.people", "synthetic.scenes", "synthetic.captions", "synthetic.shapes"),
    "synthetic.styles",
    *("synthetic.figure", "synthetic.face_layers", "synthetic.outfit_layers", "synthetic.renderer"),
    "synthetic.photo_folders",
    *("synthetic.recognisers", "synthetic.detector"),
    *("synthetic.attributes", "synthetic.world", "synthetic.judge", "synthetic"),
    # and what a person starts
    *("sheet", "reference_sheet", "ranking_sheet", "demo"),
    *("findings", "own_checkpoints", "doctor", "__init__", "__main__"),
)
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution"}


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path, folder: str) -> str:
    parts = path.relative_to(ROOT / folder).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[int, str, list[str]]]:
    """(level, module, names) of every import in a file, inside functions too; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def library_imports(path: Path) -> set[str]:
    """Modules of difflora/ that a file of difflora/ imports, in the notation of FLOW."""
    package = path.relative_to(ROOT / "difflora").parts[:-1]  # ("synthetic",) or ()
    modules = set()
    for level, module, names in imports(path):
        if level == 0:
            continue
        base = package[: len(package) - (level - 1)]
        assert level - 1 <= len(package), f"{path.relative_to(ROOT)} imports from above difflora/"
        target = ".".join((*base, *module.split("."))) if module else ".".join(base)
        if target in FLOW and not (target == "synthetic" and any(f"synthetic.{n}" in FLOW for n in names)):
            modules.add(target)
        else:  # `from . import layout`: the names are the modules
            modules |= {f"{target}.{name}".lstrip(".") for name in names}
    return modules


@pytest.mark.parametrize("path", sources("difflora"), ids=lambda path: module_name(path, "difflora"))
def test_library_file_imports_only_what_stands_before_it(path):
    name = module_name(path, "difflora")
    assert name in FLOW, f"give difflora/{name} its place in FLOW"
    for target in library_imports(path):
        assert target in FLOW, f"difflora/{name} imports {target}, which has no place in FLOW"
        if name != "__init__":
            assert FLOW.index(target) < FLOW.index(name), f"{name} imports {target}, which comes later"


@pytest.mark.parametrize("path", sources("difflora"), ids=lambda path: module_name(path, "difflora"))
def test_library_imports_are_relative_and_never_the_host(path):
    for level, module, _ in imports(path):
        if level == 0:
            top = module.split(".")[0]
            assert top not in HOST, f"difflora/ never imports {top}"
            assert top not in {"difflora", "training", "nodes"}, f"import {module} relatively"


@pytest.mark.parametrize("path", sources("training"), ids=lambda path: path.stem)
def test_training_imports_absolutely(path):
    for level, module, _ in imports(path):
        assert level == 0, f"training/{path.name}: write the import of {module} absolutely"
        assert module.split(".")[0] not in {"nodes", "studies", *HOST}


@pytest.mark.parametrize("path", sources("studies"), ids=lambda path: path.stem)
def test_studies_import_absolutely(path):
    for level, module, _ in imports(path):
        assert level == 0, f"studies/{path.name}: write the import of {module} absolutely"
        assert module.split(".")[0] not in {"nodes", *HOST}


@pytest.mark.parametrize("path", sources("nodes"), ids=lambda path: path.stem)
def test_only_host_module_touches_the_host(path):
    for level, module, _ in imports(path):
        top = module.split(".")[0]
        if level == 0:
            assert top not in {"difflora", "training", "nodes"}, f"import {module} relatively"
            # comfy_api is the public node API: schema and types; everything else goes through _host
            assert path.parent.name == "_host" or top == "comfy_api" or top not in HOST


def check_nothing_banned(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "bare except"
        if isinstance(node, ast.Assert):
            raise AssertionError(f"line {node.lineno}: raise an error that says what to do instead of assert")
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "pickle" for alias in node.names)


@pytest.mark.parametrize("folder", ["difflora", "nodes", "training", "studies"])
def test_nothing_banned(folder):
    for path in sources(folder):
        check_nothing_banned(path)


def test_importing_the_library_loads_nothing_heavy():
    code = "import sys, difflora; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "set()"
