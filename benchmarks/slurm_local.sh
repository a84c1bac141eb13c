#!/usr/bin/env bash
# A real Slurm of two virtual nodes on this machine: launch/slurm.sbatch is preempted, requeued and finishes with the
# parameters, bit for bit, of a run that nobody disturbed. For a throw-away Debian machine, as root:
#
#   benchmarks/slurm_local.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(realpath -s "${1:-$(command -v python3)}")"
PATH="$(dirname "$python"):$PATH"
export PATH JAX_PLATFORMS=cpu PJRT_NPROC=8

if ! command -v slurmctld > /dev/null || ! command -v munged > /dev/null; then
  { apt-get update -q && apt-get install -yq --no-install-recommends slurm-wlm munge; } > /dev/null
fi

dir="$(mktemp -d)"
chmod 755 "$dir"
cleanup() {
  scancel --quiet --user=root 2> /dev/null || true
  for pid in "$dir"/*.pid; do kill "$(cat "$pid")" 2> /dev/null || true; done
  sed -i '/ # slurm_local$/d' /etc/hosts 2> /dev/null || cp "$dir/hosts" /etc/hosts
}
cp /etc/hosts "$dir/hosts"
trap cleanup EXIT
echo "127.0.0.1 node1 node2 # slurm_local" >> /etc/hosts

head -c 1024 /dev/urandom > "$dir/munge.key"
chmod 400 "$dir/munge.key"
munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
  --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --force
export SLURM_CONF="$dir/slurm.conf"
cat > "$SLURM_CONF" << CONF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName=node[1-2] NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=1 State=UNKNOWN
PartitionName=spot Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
CONF
mkdir "$dir/state"
slurmctld
for node in node1 node2; do slurmd -N "$node"; done
for _ in $(seq 60); do
  [ "$(sinfo -h -t idle -o %D -p spot)" = 2 ] && break
  sleep 1
done
echo "+ sinfo" && sinfo

submit() { # submit WORKDIR: the id of the job
  sbatch --parsable --partition=spot --output="$dir/$1.log" launch/slurm.sbatch --config=configs/base.py \
    --workdir="$dir/$1" --config.mesh.preset=fsdp --config.total_steps=300 --config.log_steps=50 \
    --config.checkpoint_steps=50 --config.eval_steps=0 --config.trace_steps=0
}
finish() { # finish JOB WORKDIR: wait until it is done and over
  for _ in $(seq 600); do
    case "$(scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p')" in
      COMPLETED) return ;;
      FAILED | CANCELLED | NODE_FAIL | TIMEOUT) cat "$dir/$2.log"; scontrol show job "$1"; exit 1 ;;
    esac
    sleep 1
  done
  echo "error: job $1 takes longer than ten minutes" >&2
  cat "$dir/$2.log"
  exit 1
}

job="$(submit preempted)"
echo "+ job $job runs on two nodes"
until compgen -G "$dir/preempted/checkpoints/[0-9]*" > /dev/null; do sleep 0.2; done
urgent="$(sbatch --parsable --partition=urgent --nodes=2 --output=/dev/null --wrap 'sleep 3')"
echo "+ job $urgent of partition urgent takes the nodes"
finish "$urgent" preempted
squeue
finish "$job" preempted
scontrol show job "$job" | grep -E 'Requeue|Restarts'
echo "+ log of job $job" && grep -vE 'Gloo|preemption_notifier|coordination|^[│┌└┃┏┡├]' "$dir/preempted.log"

job="$(submit undisturbed)"
finish "$job" undisturbed
echo "+ job $job ran undisturbed"
"$python" - "$dir" << 'PYTHON'
import logging
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.ERROR)
arrays = []
for name in ("preempted", "undisturbed"):
    folder = Path(sys.argv[1], name, "checkpoints")
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    reader, saved = ocp.PyTreeCheckpointer(), folder / str(step) / "default"
    tree = reader.metadata(saved).item_metadata.tree
    # Two processes wrote it, one reads it: as plain arrays.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    arrays.append(jax.tree.leaves(reader.restore(saved, restore_args=as_numpy)))
same = all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
print(f"step {step}: the {len(arrays[0])} arrays of the two states are", "equal, bit for bit" if same else "DIFFERENT")
sys.exit(not same)
PYTHON
