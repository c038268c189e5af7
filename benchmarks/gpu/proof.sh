#!/bin/sh
# The first call on a GPU: does everything compute what it computes on a CPU, and how fast?
#
#     benchmarks/gpu/proof.sh OUT DATA_ROOT [TRAIN_FILES]
#
# In about five minutes: doctor, `pytest -m gpu`, then kernels, the engine, experts and students, each with a
# budget. A step that fails or takes too long costs the others nothing; logs and results are in OUT.
# TINY=--tiny rehearses it on a CPU.
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 OUT DATA_ROOT [TRAIN_FILES]" >&2
    exit 2
fi
out=$1 data=$2 files=${3:-5}
here=$(dirname "$0")
cd "$here/../.." || exit
mkdir -p "$out"

step() { # seconds name command...
    limit=$1 name=$2
    shift 2
    began=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    echo "== $name: exit $? after $(($(date +%s) - began)) s"
}

step 60 doctor python3 -m robustdd_bench doctor
step 100 pytest python3 -m pytest -m gpu -p no:benchmark -n 4 --durations=5 tests/test_gpu.py tests/test_capture.py \
    tests/test_engine.py tests/test_randomness.py tests/test_cli_doctor.py \
    tests/test_attacks_properties.py
for script in kernels:30 engine:85 experts:85 students:60; do
    name=${script%:*} budget=${script#*:}
    step $((budget + 25)) "$name" python3 "benchmarks/gpu/$name.py" --out "$out" \
        --data-root "$data" --train-files "$files" --budget "$budget" ${TINY:-}
done
for name in doctor pytest kernels engine experts students; do
    echo "== $name"
    tail -n 30 "$out/$name.log" | grep -v '^[{} ]' | cut -c 1-150
done
