#!/bin/bash
# Growthlaw's job on Slurm. Two braces are filled in by the service for each attempt; the rest is yours: modules, a
# container, NCCL settings, more #SBATCH lines. What must stay: the two files in exec/ and the SIGTERM that asks the
# engine to save.
#SBATCH --no-requeue
#SBATCH --signal=TERM@120

# Slurm's SIGTERM is for the engine; bash waits for it to end.
trap : TERM

export RUN_DIR={{run_dir|shell}} PYTHON={{python|shell}} MODULE={{module}}
export PYTHONPATH={{package_root|shell}}${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
printf '%s\n' "$SLURM_JOB_NODELIST" > "$RUN_DIR/exec/$SLURM_JOB_ID.nodes"

# Where the engines of several nodes meet: the first node, on which this script runs.
export GROWTHLAW_NUM_NODES={{num_nodes}}
if [ "$GROWTHLAW_NUM_NODES" -gt 1 ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_ADDR=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    MASTER_PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    export MASTER_ADDR MASTER_PORT
fi

# One engine a node, which starts the node's ranks. Once one has ended the others get a minute to end too. srun gives the
# highest of their exit codes: 74, a partner is gone, and 1, a bug, become 1 and 2 on the way, so that the cause wins.
export ENGINE='trap : TERM
GROWTHLAW_NODE_RANK=$SLURM_PROCID "$PYTHON" -m "$MODULE" "$RUN_DIR"
code=$?
case $code in 74) exit 1 ;; 1) exit 2 ;; *) exit $code ;; esac'
srun --nodes={{num_nodes}} --ntasks={{num_nodes}} --ntasks-per-node=1 --cpus-per-task={{cpus_per_node}} --export=ALL \
    --kill-on-bad-exit=0 --wait=60 bash -c "$ENGINE"
code=$?
case $code in 1) code=74 ;; 2) code=1 ;; esac

# Slurm forgets a job some minutes after its end: this stays.
echo "$code" > "$RUN_DIR/exec/.$SLURM_JOB_ID.exit" && mv "$RUN_DIR/exec/.$SLURM_JOB_ID.exit" "$RUN_DIR/exec/$SLURM_JOB_ID.exit"
exit "$code"
