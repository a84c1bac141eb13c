"""The launch scripts: they say what they would do, shellcheck finds nothing, the YAML is what its readers expect."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from crate_jax import train
from crate_jax.planning.compile import GPU_SHARE
from crate_jax.runs import cli

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
    assert container["command"][:3] == ["python", "-m", "crate_jax.train"]  # It receives SIGTERM itself.
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_sky_task_names_all_processes():
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    assert {"name", "resources", "num_nodes", "envs", "workdir", "file_mounts", "setup", "run"} == set(task)
    assert float(task["envs"]["XLA_CLIENT_MEM_FRACTION"]) == GPU_SHARE
    for flag in ("--coordinator=", "--num_processes=", "--process_id="):
        assert flag in task["run"]


def python_that(ends: str, folder: Path) -> None:
    """A stand-in for Python: a shell script that ends as it is told."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{ends}\n")
    python.chmod(0o755)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_sky_ends_as_the_run_does(code, tmp_path):
    python_that(f"exit {code}", tmp_path)
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    script = task["run"].replace(".venv/bin/", "")
    assert subprocess.run(["sh", "-c", script], env=env, timeout=60, check=False).returncode == code


@pytest.mark.parametrize(
    ("codes", "status"), [((0, 0), 0), ((75, 75), 75), ((75, 1), 1), ((1, 75), 1), ((0, 75), 75), ((0, 2), 2)]
)
def test_local_ends_as_its_processes_do(codes, status, tmp_path):
    python_that(f'case "$*" in *--process_id=0) exit {codes[0]} ;; *) exit {codes[1]} ;; esac', tmp_path)
    launch = tmp_path / "checkout" / "launch"  # Without the .venv of this one.
    launch.mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "local.sh", launch)
    done = subprocess.run(
        ["bash", str(launch / "local.sh"), "--processes=2", *TRAIN],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        timeout=60,
        check=False,
    )
    assert done.returncode == status


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True)])
def test_slurm_requeues_what_was_stopped(code, requeued, tmp_path):
    for name, ends in (
        ("srun", f"exit {code}"),
        ("scontrol", f'echo "$@" > {tmp_path}/requeued'),
        ("python", ""),
    ):
        python_that(ends, tmp_path)
        (tmp_path / "python").rename(tmp_path / name)
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "slurm.sbatch"), *TRAIN],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    asked = tmp_path / "requeued"
    assert asked.is_file() == requeued
    assert not requeued or asked.read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("codes", "state", "status"),
    [("0", "ACTIVE", 0), ("75 0", "ACTIVE", 0), ("1", "ACTIVE", 2), ("255 0", "SUSPENDED", 0)],
)
def test_a_slice_that_is_stopped_is_asked_for_again(codes, state, status, tmp_path):
    """gcloud's stand-in: the training command ends with one code after the other, everything else succeeds."""
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    (tmp_path / "state").write_text("ACTIVE")
    python_that(
        f"""case "$*" in
*describe*) cat {tmp_path}/state ;;
*queued-resources\\ create*) printf ACTIVE > {tmp_path}/state ;;
*crate_jax.train*)
  code=$(head -n1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes
  [ "$code" -lt 100 ] || printf {state} > {tmp_path}/state
  echo "run" >> {tmp_path}/log; exit "$code" ;;
esac""",
        tmp_path,
    )
    (tmp_path / "python").rename(tmp_path / "gcloud")
    for name in ("git", "sleep"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(ROOT / "launch" / "tpu_pod.sh"), "train", "--name=n", "--zone=z", "--", *TRAIN]
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60, check=False)
    assert done.returncode == status
    assert (tmp_path / "log").read_text().split() == ["run"] * len(codes.split())


def test_configurations_that_launch_files_name_exist():
    for path in (ROOT / "launch").iterdir():
        for name in re.findall(r"--config=(configs/\w+\.py)", path.read_text()):
            assert (ROOT / name).is_file(), (path.name, name)


def test_the_flags_of_launch_files_are_accepted():
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    script = re.sub(r"\$\(.*\)", "host", task["run"]).replace("\\\n", "")
    script = script.replace("$SKYPILOT_NUM_NODES", "2").replace("$SKYPILOT_NODE_RANK", "0")
    (jobset,) = yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    for words in (shlex.split(script), pod["containers"][0]["command"]):
        _, config, workdir, _ = cli.parse_config_file(words[2:], train.Flags)
        assert (config.mesh.preset, workdir) == ("hybrid", Path("/data/crate-base"))
