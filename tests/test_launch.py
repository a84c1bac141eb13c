"""The launch scripts: they say what they would do, shellcheck finds nothing, the YAML is what its readers expect."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from crate_jax.planning.compile import GPU_SHARE

SCRIPTS = [
    *(ROOT / "launch").glob("*.sh"),
    ROOT / "launch" / "slurm.sbatch",
    *(ROOT / "benchmarks").glob("*.sh"),
]
TRAIN = ["--config=configs/base.py", "--workdir=runs/a b"]


def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def commands(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The lines of a dry run, as a shell would read them."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    # Beside Python: it comes with the extra `test`.
    program = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert program, "shellcheck is missing; install the extra `test`"
    done = subprocess.run([program, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_local_starts_processes_that_find_one_another():
    one = commands(call("local.sh", "--dry-run", "--devices=4", *TRAIN))
    assert len(one) == 1
    assert {"JAX_PLATFORMS=cpu", *TRAIN} < set(one[0])
    assert "--xla_force_host_platform_device_count=4" in " ".join(one[0])
    two = commands(call("local.sh", "--dry-run", "--processes=2", *TRAIN))
    assert [line[-1] for line in two] == ["--process_id=0", "--process_id=1"]
    assert two[0][:-1] == two[1][:-1] and "--num_processes=2" in two[0]


def test_slurm_gives_a_process_all_of_its_node():
    (line,) = commands(call("slurm.sbatch", "--dry-run", *TRAIN, SLURM_GPUS_ON_NODE="8"))
    assert line[:3] == ["JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7", "XLA_CLIENT_MEM_FRACTION=.92", "srun"]
    assert line[-4:] == ["-m", "crate_jax.train", *TRAIN]
    (line,) = commands(call("slurm.sbatch", "--dry-run", *TRAIN))
    assert line[0] == "srun"


def test_tpu_pod_says_every_command():
    options = ["--name=n", "--zone=z", "--type=v5p-128", "--spot", "--bucket=b", "--dry-run", "--", *TRAIN]
    lines = commands(call("tpu_pod.sh", "train", *options))
    assert lines[0][:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert "--runtime-version=v2-alpha-tpuv5" in lines[0] and "--spot" in lines[0]
    run = lines[-2]
    assert "--worker=all" in run
    remote = shlex.split(run[-1].removeprefix("--command="))
    assert remote[-2:] == TRAIN, "what the remote shell reads is what was meant"
    assert lines[-1][4:6] == ["delete", "n"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.sh", ["--processes=0"], "--processes: found '0'"),
        ("local.sh", ["--devices=x"], "--devices: found 'x'"),
        ("slurm.sbatch", ["--config=x"], "--workdir is required"),
        ("tpu_pod.sh", [], "unknown action ''; accepted: create, install"),
        ("tpu_pod.sh", ["create", "--zone=z"], "--name is required"),
        ("tpu_pod.sh", ["create", "--name=n", "--zone=z", "--type=v9-8"], "--type: found 'v9-8'"),
        ("tpu_pod.sh", ["run", "--name=n", "--zone=z"], "flags of crate_jax.train are missing"),
    ],
)
def test_mistakes_are_one_line(script, arguments, message):
    done = call(script, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_jobset_is_one():
    (jobset,) = yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = [int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    hosts = chips[0] * chips[1] // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts
    assert container["command"][:2] == ["sh", "-c"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_sky_task_names_all_processes():
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    assert {"name", "resources", "num_nodes", "envs", "workdir", "file_mounts", "setup", "run"} == set(task)
    assert float(task["envs"]["XLA_CLIENT_MEM_FRACTION"]) == GPU_SHARE
    for flag in ("--coordinator=", "--num_processes=", "--process_id="):
        assert flag in task["run"]


def scripts(folder: Path) -> dict[str, str]:
    """What the JobSet and the SkyPilot task run, with the workdir and the data in another folder."""
    (jobset,) = yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    found = {"jobset": pod["containers"][0]["command"][2], "sky": task["run"].replace(".venv/bin/", "")}
    return {name: script.replace("/data/", f"{folder}/") for name, script in found.items()}


@pytest.mark.parametrize("name", ["jobset", "sky"])
@pytest.mark.parametrize(("code", "final"), [(0, True), (0, False), (1, True), (3, False)])
def test_a_run_that_was_stopped_has_not_succeeded(name, code, final, tmp_path):
    workdir = tmp_path / "crate-base"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text('{"step": 9, "final": true}\n' if final else '{"step": 9}\n')
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    done = subprocess.run(["sh", "-c", scripts(tmp_path)[name]], env=env, timeout=60, check=False)
    assert (done.returncode == 0) == (code == 0 and final)


def test_the_jobset_passes_sigterm_on(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ntrap 'echo stopped; exit 0' TERM\necho started\nwhile :; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    process = subprocess.Popen(
        ["sh", "-c", scripts(tmp_path)["jobset"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.communicate(timeout=60)[0] == "stopped\n"
        assert process.returncode > 0, "saved, but not at its end"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_configurations_that_launch_files_name_exist():
    for path in (ROOT / "launch").iterdir():
        for name in re.findall(r"--config=(configs/\w+\.py)", path.read_text()):
            assert (ROOT / name).is_file(), (path.name, name)
