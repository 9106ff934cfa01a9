#!/usr/bin/env bash
# One run on one node of a Slurm cluster; with several GPUs the training is divided (docs/distributed.md has the rule about batches).
#     sbatch launch/cluster/slurm.sh                                    # from the project's folder, after `make setup` on a login node
#     sbatch --gpus-per-node=4 --export=ALL,PROFILE=qwen3-14b launch/cluster/slurm.sh
# A job that is stopped for its time or for another's goes back into the queue and goes on from its last checkpoint.
# Not run on a cluster; its shell is checked in tests/benchmarks/test_launch_cluster.py.
#SBATCH --job-name=hybrid-course
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.txt
set -euo pipefail

PROFILE=${PROFILE:-qwen3-8b}
OUTPUT=${OUTPUT:-runs/$PROFILE}
GPUS=${SLURM_GPUS_ON_NODE:-1}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}  # compute nodes often have no network: fetch model and data on a login node

if [ "$GPUS" -gt 1 ]; then
  .venv/bin/torchrun --standalone --nproc-per-node "$GPUS" -m pipeline run --profile "$PROFILE" --output-dir "$OUTPUT" --resume
else
  .venv/bin/python -m pipeline run --profile "$PROFILE" --output-dir "$OUTPUT" --resume
fi
