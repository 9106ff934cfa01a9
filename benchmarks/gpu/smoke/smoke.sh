#!/bin/bash
# All stages of smoke.py in order of value, within ten minutes, on a machine that one has for minutes:
#   OUT=outputs/smoke bash benchmarks/gpu/smoke/smoke.sh
# Without network, wheels travel in .whl (see bundle.py); they go beside the machine's own packages, into $SCRATCH/site.
# SECONDS_AT_MOST=555 is the time for everything; SHAPES="tiny" runs it on a CPU.
set -u
OUT=${OUT:?a folder for the results}; SCRATCH=${SCRATCH:-/tmp/smoke}
PYTHON=${PYTHON:-python3}; SHAPES=${SHAPES:-0.6b 8b}; STEPS=${STEPS:-40}
end=$((SECONDS + ${SECONDS_AT_MOST:-555}))
mkdir -p "$OUT" "$SCRATCH"
exec > >(tee -a "$OUT/log.txt") 2>&1
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 UNSLOTH_DISABLE_STATISTICS=1 TOKENIZERS_PARALLELISM=false
export PIPELINE_CACHE=$SCRATCH/cache PIPELINE_ANY_VERSIONS=1
if compgen -G ".whl/*.whl" >/dev/null; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$SCRATCH/site" .whl/*.whl || exit 1
  export PYTHONPATH=$SCRATCH/site:$PYTHONPATH
fi
gpu=yes slower=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || { gpu=no slower=10; echo "no GPU"; }

failed=0
stage() { # seconds at most, stage, more arguments
  local most=$(($1 * slower)) left=$((end - SECONDS)); shift
  if ((left < 20)); then echo "not begun: $1"; failed=1; return; fi
  timeout $((most < left ? most : left)) "$PYTHON" benchmarks/gpu/smoke/smoke.py "$@" --output-dir "$OUT" --scratch "$SCRATCH"
  local code=$?
  ((code == 0)) || { echo "== $1: exit $code"; failed=1; }
  return $code
}

reference=
if [ $gpu = yes ]; then  # the reference is computed meanwhile, on the cores of the CPU
  CUDA_VISIBLE_DEVICES="" stage 400 train-cpu --steps "$STEPS" & reference=$!
fi
stage 150 train --steps "$STEPS"
for method in ${METHODS:-prompt prefix dora adapter ia3 lora}; do stage 60 "method-$method" --steps 4; done
for shape in $SHAPES; do stage 200 "shape-$shape"; done
stage 120 second
if [ -n "$reference" ]; then
  wait "$reference" || failed=1
  stage 20 compare
fi
exit $failed
