"""The launch scripts: they say what they would do, shellcheck finds nothing, the YAML is what its readers expect."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

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
    near = Path(sys.executable).with_name("shellcheck")
    program = str(near) if near.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed; it comes with the extra `test`")
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
    assert line[0] == "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" and line[1] == "srun"
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
    assert container["command"][:3] == ["python", "-m", "crate_jax.train"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_sky_task_names_all_processes():
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    assert {"name", "resources", "num_nodes", "workdir", "file_mounts", "setup", "run"} == set(task)
    for flag in ("--coordinator=", "--num_processes=", "--process_id="):
        assert flag in task["run"]


def test_configurations_that_launch_files_name_exist():
    for path in (ROOT / "launch").iterdir():
        for name in re.findall(r"--config=(configs/\w+\.py)", path.read_text()):
            assert (ROOT / name).is_file(), (path.name, name)
