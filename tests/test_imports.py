"""Who may import whom: the floors of the package, read off every import statement, and what a library loads when it runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crate_jax

PACKAGE = Path(crate_jax.__file__).parent

# A room (a folder of the package) imports only rooms on lower floors. A file beside the rooms is a command: it may import
# every room, and nothing imports it.
FLOORS = {
    "reports": 8,
    "planning": 8,
    "analysis": 7,
    "training": 6,
    "tasks": 5,
    "runs": 4,
    "parallel": 3,
    "weights": 3,
    "compression": 3,
    "models": 2,
    "data": 2,
    "objectives": 1,
    "alignment": 1,
    "settings": 1,
}
COMMANDS = 9
# Of other packages: what one room alone may import, what a room may import at most (numpy comes with jax), what it may not.
ONLY = {"flax": "models"}
AT_MOST = {"objectives": {"jax", "numpy"}, "alignment": {"jax", "numpy"}, "settings": set()}
NEVER = {"data": {"jax", "flax", "optax"}}


def imported(file: Path) -> set[str]:
    """The modules that a file imports, in functions too: `import a.b` gives `a.b`, `from a import b` gives `a.b` as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(file: Path) -> str:
    """The folder under the package; of a command the file itself."""
    return file.relative_to(PACKAGE).parts[0]


def violations(room: str, modules: set[str]) -> list[str]:
    """Those of the modules that a file of the room may not import."""
    wrong = []
    for module in sorted(modules):
        package, *rest = module.split(".")
        if package != "crate_jax":
            forbidden = package in NEVER.get(room, ()) or room != ONLY.get(package, room)
            if room in AT_MOST:
                forbidden |= package not in AT_MOST[room] | sys.stdlib_module_names
            if forbidden:
                wrong.append(module)
            continue
        other = rest[0] if rest else None
        if other in FLOORS:
            if other != room and FLOORS[other] >= FLOORS.get(room, COMMANDS):
                wrong.append(module)
        elif other is not None and (PACKAGE / f"{other}.py").exists():
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("room", sorted({room_of(file) for file in PACKAGE.rglob("*.py")}))
def test_imports_go_down(room):
    files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    for file in files:
        wrong = violations(room, imported(file))
        assert not wrong, f"{file.relative_to(PACKAGE)} imports {', '.join(wrong)}"


def test_every_room_has_a_floor():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"} <= set(FLOORS)


@pytest.mark.parametrize(
    ("room", "module"),
    [
        ("training", "crate_jax.analysis.figures"),
        ("training", "crate_jax.evaluate"),
        ("tasks", "crate_jax.training.loop"),
        ("weights", "crate_jax.parallel.sharding"),
        ("reports", "crate_jax.planning.hlo"),
        ("objectives", "optax"),
        ("data", "jax.numpy"),
        ("training", "flax.nnx"),
        ("probe.py", "crate_jax.train"),
    ],
)
def test_an_import_upwards_is_found(room, module):
    assert violations(room, {module}) == [module]


def test_an_import_inside_a_function_counts(tmp_path):
    (tmp_path / "late.py").write_text("def f():\n    from crate_jax import train\n")
    assert violations("training", imported(tmp_path / "late.py")) == ["crate_jax.train"]


HEAVY = (
    "flax",
    "optax",
    "orbax",
    "tensorflow_datasets",
    "ml_collections",
    "grain",
    "matplotlib",
    "sklearn",
)


def test_settings_load_nothing():
    program = (
        "import sys, crate_jax.settings; print(*[name for name in ('jax', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("library", ["crate_jax.alignment", "crate_jax.objectives"])
def test_a_library_loads_jax_and_nothing_else(library):
    program = f"import sys, {library}; print(*[name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
