#!/bin/bash
#SBATCH --job-name=mlxdist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#
# Trains on the nodes that Slurm gives, a rank for each task:
#
#   sbatch launch/slurm.sh launch/train_lm.py --steps 1000
#   sbatch --nodes=4 --gres=gpu:1 launch/slurm.sh my_script.py
#
# The checkout, with its .venv (launch/setup), lies on a disk that all nodes see. Open
# MPI's daemons are started by srun. Slurm ends the job's ranks where its time is over;
# with --checkpoint-every and --max-restarts a script goes on after a rank has died.
set -euo pipefail

root=${SLURM_SUBMIT_DIR:?this is for sbatch} # Slurm runs a copy of this file
bin=$root/.venv/bin
[ -x "$bin/mlxdist" ] || {
    echo "there is no $bin/mlxdist: call sbatch in the checkout, after launch/setup" >&2
    exit 2
}
[ $# -gt 0 ] || {
    echo 'which script? sbatch launch/slurm.sh launch/train_lm.py' >&2
    exit 2
}

slots=${SLURM_NTASKS_PER_NODE:-1}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/:$slots/" | paste -sd, -)
exec "$bin/mlxdist" run -H "$hosts" "$@"
