#!/usr/bin/env bash
# Runs the operators' kernels under the address and undefined-behaviour sanitizers: those of this CPU over random shapes,
# compared with each other, then the CUDA kernels, emulated, through their tests: tools/sanitize_ops.sh [problems]
set -euo pipefail
cd "$(dirname "$0")/.."
CXX=${CXX:-g++}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# The kernels take minutes to compile this way: one process a core.
for source in piip_ops/csrc/fuzz/fuzz.cpp piip_ops/csrc/cpu/kernels_*.cpp; do
    echo "-c $source -o $folder/$(basename "$source" .cpp).o"
done | xargs -P "$(nproc)" -L 1 "$CXX" -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
"$CXX" -fsanitize=address,undefined "$folder"/*.o -o "$folder/fuzz"
"$folder/fuzz" "${1:-4000}"

# Python is not built with the sanitizer: it has to be there first. What Python leaves behind is not ours.
LD_PRELOAD="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 PIIP_OPS_DEVICE=emulated-cuda \
    "${PYTHON:-.venv/bin/python}" -m pytest -q -p no:cacheprovider tests/piip_ops/test_values.py -k "not gradcheck"
