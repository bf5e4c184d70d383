#!/bin/bash
#SBATCH --job-name=mlxdist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#
# Runs a script on the nodes of a Slurm job, one rank for each task:
#
#   sbatch launch/slurm.sh launch/train_lm.py --steps 1000
#   sbatch --nodes=4 --gres=gpu:1 launch/slurm.sh my_script.py
#
# The checkout, with its .venv (launch/setup), must be on a disk that all nodes share.
# srun starts Open MPI's daemons. Slurm ends the ranks at the time limit; a job whose
# rank died continues with --max-restarts, from the script's last checkpoint.
set -euo pipefail

root=${SLURM_SUBMIT_DIR:?start this script with sbatch} # Slurm runs a copy of this file
bin=$root/.venv/bin
[ -x "$bin/mlxdist" ] || {
    echo "found no $bin/mlxdist: run launch/setup, and call sbatch in the checkout" >&2
    exit 2
}
[ $# -gt 0 ] || {
    echo 'no script given; example: sbatch launch/slurm.sh launch/train_lm.py' >&2
    exit 2
}

slots=${SLURM_NTASKS_PER_NODE:-1}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/:$slots/" | paste -sd, -)
exec "$bin/mlxdist" run -H "$hosts" "$@"
