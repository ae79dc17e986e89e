#!/usr/bin/env bash
# A batch job as a SLURM array: each task speaks one shard of the manifest, on one GPU. docs/cluster.md explains it.
#
#   sbatch docs/slurm_array.sh items.jsonl model out --voice anna.wav          # all shards
#   sbatch --array=3 docs/slurm_array.sh items.jsonl model out --voice anna.wav  # shard 3 again
#   bash docs/slurm_array.sh items.jsonl model out --voice anna.wav            # then, outside of the array: merge
#
#SBATCH --job-name=speech
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

SHARDS="${SHARDS:-8}" # as many as the whole array has tasks, also when only some are submitted again
if [ $# -lt 3 ]; then
    echo "usage: $0 MANIFEST MODEL OUTPUT_DIR [options of indextts-jax batch]" >&2
    exit 2
fi
MANIFEST="$1" MODEL="$2" OUT="$3"
shift 3

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    PART=(--shard "$SLURM_ARRAY_TASK_ID/$SHARDS")
else
    PART=(--merge)
fi
# exec: the signal that SLURM sends two minutes before the time is over reaches the job itself, which finishes what it
# has begun and ends with 143. A task that is requeued goes on from its journal.
exec indextts-jax batch "$MANIFEST" --model "$MODEL" --output-dir "$OUT" "${PART[@]}" "$@"
