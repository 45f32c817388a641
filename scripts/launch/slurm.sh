#!/bin/bash
# Two nodes of eight GPUs under Slurm: sbatch scripts/launch/slurm.sh --recipe imagenet_lt --data_dir ... --output_dir mae
# Two minutes before the time limit, Slurm sends SIGTERM; training saves a checkpoint and exits, and the job requeues itself
# to resume from there.
#SBATCH --job-name=livt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

started=$(mktemp)
export HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8
srun bash -c 'exec accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" --num_processes $((8 * SLURM_NNODES)) \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port 29500 --mixed_precision bf16 \
  scripts/run_mae.py "$@"' run "$@"

# A finished run has a README.md, its card, written last. A run without a new checkpoint has failed, and would fail again.
output_dir=$(printf '%s\n' "$@" | sed -n -e 's/^--output[-_]dir=//p' -e '/^--output[-_]dir$/{n;p}' | tail -n 1)
saved=$(find "$output_dir" -maxdepth 1 -name 'checkpoint-*' -newer "$started")
[ -f "$output_dir/README.md" ] || [ -z "$saved" ] || scontrol requeue "$SLURM_JOB_ID"
