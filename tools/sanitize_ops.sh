#!/usr/bin/env bash
# Builds the operator's CPU kernels with the address and undefined-behaviour sanitizers, runs them over random shapes and
# compares what the kernel sets of this CPU give: tools/sanitize_ops.sh [problems]
set -euo pipefail
cd "$(dirname "$0")/../piip_ops/csrc"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${CXX:-g++} -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
    fuzz/fuzz.cpp cpu/kernels_*.cpp -o "$folder/fuzz"
"$folder/fuzz" "${1:-4000}"
