"""The folders are the architecture: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "delta": ROOT / "delta",
    "delta_client": ROOT / "client" / "delta_client",
    "delta_server": ROOT / "server" / "delta_server",
    "enclave_sim": ROOT / "enclave_sim",
}
OURS = set(PACKAGES)


def _modules():
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            yield name, path


def _imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _top_level_imports(source: str) -> set[str]:
    tree = ast.parse(source)
    kept = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return _imports(ast.unparse(ast.Module(body=kept, type_ignores=[])))


def _within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(name: str, source: str) -> list[str]:
    """Every import of a module that the layout forbids."""
    found = []
    for target in _imports(source):
        top = target.split(".")[0]
        if _within(target, "delta.cli") and not _within(name, "delta.cli"):
            found.append(f"{name} imports {target}: nothing imports delta.cli")
        is_grpc = top in {"grpc", "grpc_health", "grpc_reflection"}
        if is_grpc and _within(name, "delta", "enclave_sim") and not _within(name, "delta.v1", "delta.wire"):
            found.append(f"{name} imports {target}: gRPC stays in delta.v1 and delta.wire")
        if _within(target, "delta.v1") and not _within(name, "delta.v1", "delta.wire"):
            found.append(f"{name} imports {target}: only delta.wire imports the generated stubs")
        if top in OURS:
            if _within(name, "enclave_sim") and top != "enclave_sim":
                found.append(f"{name} imports {target}: enclave_sim imports nothing of ours")
            if _within(name, "delta") and top != "delta" and not _within(name, "delta.cli"):
                found.append(f"{name} imports {target}: delta imports no process package")
            if _within(name, "delta_client") and top == "delta_server":
                found.append(f"{name} imports {target}: client and server never import each other")
            if _within(name, "delta_server") and top == "delta_client":
                found.append(f"{name} imports {target}: client and server never import each other")
        if top in {"pickle", "cloudpickle", "dill", "shelve", "marshal"}:
            found.append(f"{name} imports {target}: no pickle anywhere")
    if _within(name, "delta.cli"):
        for target in _top_level_imports(source):
            if target.split(".")[0] in {"delta_client", "delta_server", "enclave_sim"}:
                found.append(f"{name} imports {target} at the top: only inside command functions")
    return found


MODULES = dict(_modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_layout(name):
    assert violations(name, MODULES[name].read_text()) == []


@pytest.mark.parametrize("name", MODULES)
def test_files_stay_readable(name):
    if not _within(name, "delta.v1"):
        assert len(MODULES[name].read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("delta.release.noise", "import grpc"),
        ("delta.training.api", "from delta.cli import main"),
        ("delta.bench.latency", "import delta_server"),
        ("delta_client.session", "from delta_server import launch"),
        ("delta_server.app", "import delta_client"),
        ("enclave_sim.seal", "import delta.errors"),
        ("delta_client.session", "from delta.v1 import common_pb2"),
        ("delta.cli.serve", "from delta_server.app import serve"),
        ("delta.bundle.store", "import pickle"),
    ],
)
def test_a_forbidden_import_is_found(name, source):
    assert violations(name, source)
