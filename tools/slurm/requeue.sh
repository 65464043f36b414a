#!/usr/bin/env bash
# Runs a command that goes on where it stopped, in a job of Slurm that may take longer than its time limit:
#
#     sbatch --requeue --signal=B:USR1@120 ... with the last line:  exec tools/slurm/requeue.sh COMMAND [ARGUMENT ...]
#
# At Slurm's signal, some time before the limit, it ends the command and puts the job into the queue again.
set -uo pipefail

near_limit=
ended=
end() {
  ended=1
  kill -TERM "${!:-}" 2>/dev/null
}
trap 'near_limit=1; end' USR1
trap end TERM

"$@" &
[[ -z $ended ]] || end # the signal came before the command was there

wait $!
status=$?
while kill -0 $! 2>/dev/null; do # a signal interrupts wait
  wait $!
  status=$?
done

if [[ -n $near_limit && $status -ne 0 ]]; then
  echo "The time limit is near: job $SLURM_JOB_ID goes back into the queue."
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
