"""The command line: one way to write flags, help for every command, one line for a mistake, exit codes."""

import dataclasses
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

import crate_jax
from crate_jax import InputError, __main__
from crate_jax.parallel import processes
from crate_jax.runs import cli
from crate_jax.runs import help as helps
from crate_jax.runs.config import describe
from crate_jax.runs.flags import once_each, take
from crate_jax.settings import REQUIRED, setting, settings_of

COMMANDS = sorted(__main__.commands())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Some of each kind."""

    place: Path = setting(REQUIRED, "A place.")
    num: int = setting(16, "A number.", least=1)
    rate: float | None = setting(None, "A rate.", above=0)
    random: bool = setting(False, "A switch.")
    mode: str = setting("one", "A mode.", choices=("one", "two"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.ConfigFlags):
    """Those of a configuration, and a number."""

    num: int = setting(16, "A number.", least=1)


def page(name: str, *arguments: str, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"crate_jax.{name}").main([name, *arguments])
    assert not end.value.code
    return capsys.readouterr().out


def kinds(name: str) -> dict[str, type]:
    """The flags of a command, by the word that follows it, or by "" where none does."""
    module = importlib.import_module(f"crate_jax.{name}")
    return (
        {word: kind for word, (_, kind) in module.WORDS.items()}
        if hasattr(module, "WORDS")
        else {"": module.Flags}
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, flag, capsys):
    text = page(name, flag, capsys=capsys)
    assert text.startswith(__main__.commands()[name])
    for word, kind in kinds(name).items():
        own = [line for line in helps.examples(kind) if f"crate_jax.{name} " in line]
        assert len(own) >= 2, "two examples"
        text = page(name, *([word] if word else []), flag, capsys=capsys)
        for flag_name, one in settings_of(kind).items():
            assert f"  --{flag_name}" in text
            assert one.description[:1].isupper() and one.description.split()[0] in text, flag_name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_every_command_are_accepted(name):
    """As far as flags go: each has a known name and an acceptable value."""
    for word, kind in kinds(name).items():
        start = f"crate_jax.{name} {word}".rstrip() + " "
        for line in (line for line in helps.examples(kind) if start in line):
            _, rest = take(["", *line.partition(start)[2].replace('"def "', "def").split()], kind)
            assert all(argument.startswith("--config.") for argument in rest), line


def test_help_names_every_key_of_the_configuration(capsys):
    text = page("train", "--config=configs/base.py", "--help", capsys=capsys)
    rows = describe(cli.from_config_dict(cli.load_config("configs/base.py")[0]))
    assert len(rows) > 60
    for key, _, _, one in rows:
        assert f"\n  {key}" in text
        assert one.description.split()[0] in text
    assert "total_epochs" in text and "here: 120.0" in text


def test_help_does_not_need_what_is_required(capsys):
    assert "Required." in page("train", "--help", capsys=capsys)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--place=a"], {}),
        (["--place", "a", "--num", "3"], {"num": 3}),
        (["--num=3", "--place=a", "--num=4"], {"num": 4}),
        (["--place=a", "--random"], {"random": True}),
        (["--place=a", "--norandom"], {"random": False}),
        (["--place=a", "--random=false"], {"random": False}),
        (["--place=a", "--random=true"], {"random": True}),
        (["--place=a", "--rate", "1e-3"], {"rate": 1e-3}),
        (["--place=a", "--mode=two"], {"mode": "two"}),
    ],
)
def test_ways_to_write_a_flag(arguments, changes):
    assert cli.parse(["command", *arguments], Flags) == dataclasses.replace(Flags(place=Path("a")), **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--place is required: A place."),
        (["--place=a", "--nums=3"], "unknown flag --nums; did you mean --num?"),
        (["--place=a", "b"], "unexpected argument 'b'; flags are written --name=value"),
        (["b", "--place=a"], "unexpected argument 'b'; flags are written --name=value"),
        (["--place=a", "--num=x"], "--num: found 'x'; accepted: a whole number of at least 1"),
        (["--place=a", "--num=0"], "--num: found 0; accepted: a whole number of at least 1"),
        (["--place=a", "--rate", "-1e-3"], "--rate: found -0.001; accepted: a number above 0"),
        (["--place=a", "--rate=nan"], "--rate: found nan; accepted: a number above 0"),
        (["--place=a", "--mode=tow"], "--mode: found 'tow'; accepted: one, two; did you mean two?"),
        (["--place=a", "--random=maybe"], "--random: found 'maybe'; accepted: true or false"),
        (["--place=a", "--num"], "Missing value for flag --num"),
        (["--place=a", "--config.seed=1"], "unknown flag --config.seed; accepted: --place, --num"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        cli.parse(["command", *arguments], Flags)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.optimizer.lr=1e-3", "--config.data.flip=true", "--config.seed=3"],
        ["--config.optimizer.lr", "1e-3", "--config.data.flip", "--config.seed", "3"],
    ],
)
def test_ways_to_write_a_key(arguments):
    command = ["train", "--config", "configs/base.py", *arguments, "--num", "3"]
    flags, config, workdir, overrides = cli.parse_config_file(command, Config)
    assert (config.optimizer.lr, config.data.flip, config.seed) == (1e-3, True, 3)
    assert overrides == {"optimizer.lr", "data.flip", "seed"}
    assert (flags.num, workdir) == (3, Path("runs/base"))


def test_a_switch_among_the_keys_is_turned_off():
    command = ["train", "--config=configs/igpt.py:cifar10", "--noconfig.data.flip", "--workdir=x"]
    _, config, workdir, _ = cli.parse_config_file(command, Config)
    assert not config.data.flip and workdir == Path("x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.dmi=3"], "config: unknown key model.dmi; did you mean model.dim?"),
        (["--config.lr=3"], "config: unknown key lr; did you mean optimizer.lr?"),
        (["--noconfig.data.flop"], "config: unknown key data.flop; did you mean data.flip?"),
        (["--config.total_epochs=many"], "--config.total_epochs: found 'many'; accepted: a number"),
        (["--config.data.flip=x"], "--config.data.flip: found 'x'; accepted: true or false"),
        (
            ["--config.optimizer.lr", "-1"],
            "config: optimizer.lr: found -1.0; accepted: a number of at least 0",
        ),
        (["--config.seed=1.5"], "--config.seed: found '1.5'; accepted: a whole number"),
        (["--config.seed"], "Missing value for flag --config.seed"),
        (["--config.seed", "1", "2"], "unexpected argument '2'"),
        (["--nun=3"], "unknown flag --nun; did you mean --num?"),
    ],
)
def test_mistakes_among_the_keys(arguments, message):
    with pytest.raises(InputError) as error:
        cli.parse_config_file(["train", "--config=configs/base.py", *arguments], Config)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(): return 3", "returned int; accepted: ConfigDict"),
        ("x = 1", "defines no function get_config"),
        ("def get_config(\n", "SyntaxError"),
        ("\nraise RuntimeError('no')", "line 2: RuntimeError: no"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_is_no_configuration(content, message, tmp_path):
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(InputError, match=message):
        cli.load_config(str(tmp_path / "broken.py"))


def test_an_unknown_variant():
    with pytest.raises(
        InputError, match="--config: variant: found 'digit'; accepted: digits; did you mean dig"
    ):
        cli.load_config("configs/base.py:digit")


def test_configurations_of_an_installed_package(tmp_path, monkeypatch):
    """Without a checkout --config=configs/base.py is the file that was installed; one in the current folder comes first."""
    monkeypatch.setattr(cli.sysconfig, "get_path", lambda name: str(tmp_path / name))
    (tmp_path / "data" / "share" / "crate_jax").mkdir(parents=True)
    shutil.copytree(ROOT / "configs", tmp_path / "data" / "share" / "crate_jax" / "configs")
    monkeypatch.chdir(tmp_path)
    values, name = cli.load_config("configs/base.py")
    assert name == "base" and values.model.dim == 96
    with pytest.raises(InputError, match=r"no file configs/none\.py"):
        cli.load_config("configs/none.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("x = 1")
    with pytest.raises(InputError, match="defines no function get_config"):
        cli.load_config("configs/base.py")


def test_changes_are_passed_on_as_one_word_each():
    command = [
        "report",
        "--place=a",
        "--config.lr",
        "-1",
        "--config.data.flip",
        "--config.seed=3",
        "--num",
        "2",
    ]
    flags, changes = cli.parse_changes(command, Flags)
    assert flags.num == 2
    assert changes == ["--config.lr=-1", "--config.data.flip", "--config.seed=3"]


def ending(monkeypatch, capsys, main, kind=Flags) -> tuple[int, str]:
    """The exit code of a command and what it prints on stderr."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(SystemExit) as end:
        cli.run(main, kind)
    return end.value.code, capsys.readouterr().err


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda argv: None, 0),
        (lambda argv: cli.STOPPED, 75),
        (raising(InputError("no")), 2),
        (raising(FloatingPointError("nan")), 1),
        (raising(OSError(28, "No space left on device", "x")), 1),
        (raising(KeyboardInterrupt()), 130),
    ],
)
def test_exit_codes(main, code, monkeypatch, capsys):
    found, text = ending(monkeypatch, capsys, main)
    assert found == code
    assert len(text.splitlines()) == (code not in (0, 75))


def test_processes_join_for_commands_of_a_job_alone(monkeypatch, capsys):
    joined = []
    monkeypatch.setattr(processes, "join", joined.append)
    monkeypatch.setattr(processes, "leave", lambda: None)
    monkeypatch.setattr(sys, "argv", ["x", "--coordinator", "a:1", "--num_processes=2", "--process_id", "0"])
    ending(monkeypatch, capsys, lambda argv: None)
    assert joined == []
    ending(monkeypatch, capsys, lambda argv: None, processes.JobFlags)
    assert joined == [processes.JobFlags(coordinator="a:1", num_processes=2, process_id=0)]
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    ending(monkeypatch, capsys, lambda argv: None, processes.JobFlags)
    assert len(joined) == 1


def test_the_list_of_commands(monkeypatch, capsys):
    for arguments in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["crate-jax", *arguments])
        __main__.main()
        text = capsys.readouterr().out
        for name, summary in __main__.commands().items():
            assert name in text and summary in text


def test_an_unknown_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crate-jax", "trian"])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_a_command_is_one_file(tmp_path, monkeypatch, capsys):
    """The one that docs/extending.md shows."""
    page = (ROOT / "docs" / "extending.md").read_text()
    code = page.partition("`crate_jax/count.py`:")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "count.py").write_text(code)
    monkeypatch.setattr(crate_jax, "__path__", [*crate_jax.__path__, str(tmp_path)])
    monkeypatch.chdir(ROOT)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["crate-jax", *arguments])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        assert not end.value.code
        return capsys.readouterr().out

    assert __main__.commands()["count"] == "Count the parameters of a configuration."
    assert call("count", "--config=configs/base.py") == "172362\n"
    assert call("count", "--config", "configs/base.py", "--millions") == "0.2 million\n"
    assert "Count in millions." in call("count", "--help")


ENTRY = "import sys; from crate_jax.__main__ import main; sys.argv[0] = 'crate-jax'; main()"


@pytest.mark.parametrize(
    "start",
    [["-m", "crate_jax.prepare"], ["-m", "crate_jax", "prepare"], ["-c", ENTRY, "prepare"]],
    ids=["module", "package", "script"],
)
def test_every_way_to_start_a_command_is_the_same(start):
    def call(*arguments):
        done = [sys.executable, *start, *arguments]
        return subprocess.run(
            done, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )

    done = call("--help")
    assert done.returncode == 0 and done.stdout.startswith(__main__.commands()["prepare"])
    done = call("--input", "npz:x", "--output=y", "--proceses=2")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown flag --proceses; did you mean --processes?\n"


def test_the_console_script_is_the_list_of_commands():
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["crate-jax"].partition(":")
    assert getattr(importlib.import_module(module), function) is __main__.main


@pytest.mark.parametrize("platform", ["cuda", "gpuu"])
def test_a_platform_that_is_not_there(platform):
    code = "import jax; from crate_jax.runs import cli; cli.run(lambda _: jax.devices(), cli.WorkdirFlags)"
    env = {**environment(), "JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: JAX_PLATFORMS: found {platform}, which cannot be used here")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "each"),
    [
        (["c", "--workdir=a"], [["c", "--workdir=a"]]),
        (["c"], [["c"]]),
        (
            ["c", "--workdir", "a", "--x", "1", "--workdir=b=c"],
            [["c", "--workdir=a", "--x", "1"], ["c", "--x", "1", "--workdir=b=c"]],
        ),
    ],
)
def test_a_flag_that_may_be_given_several_times(given, each):
    assert once_each(given, "workdir") == each
