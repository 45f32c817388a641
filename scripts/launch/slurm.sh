#!/bin/bash
# Two nodes of eight GPUs under Slurm: sbatch scripts/launch/slurm.sh --recipe imagenet_lt --data_dir ... --output_dir mae
# Two minutes before the time limit Slurm sends SIGTERM to the training, which saves and ends; the job then queues itself
# again and the run goes on from there.
#SBATCH --job-name=livt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

export HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8
srun bash -c 'exec accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" --num_processes $((8 * SLURM_NNODES)) \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port 29500 --mixed_precision bf16 \
  scripts/run_mae.py "$@"' run "$@"

# run.json is written last, beside the finished model.
output_dir=$(printf '%s\n' "$@" | grep -A1 -x -e --output_dir | tail -n 1)
[ -f "$output_dir/run.json" ] || scontrol requeue "$SLURM_JOB_ID"
