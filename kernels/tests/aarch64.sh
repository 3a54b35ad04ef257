#!/bin/sh
# Compares the ARM kernels with plain C++ bit for bit on a machine that is no ARM: builds ofq_selftest with a cross compiler and runs it
# in an emulated processor. Takes a few minutes; exit status 1 where something differs, 2 where a tool is missing.
#
#   kernels/tests/aarch64.sh [build folder]      default: kernels/build/aarch64
#
# On Debian and Ubuntu the tools are in the packages cmake, g++-aarch64-linux-gnu and qemu-user.
set -eu
for tool in cmake aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v "$tool" > /dev/null || { echo "aarch64.sh: $tool is missing (Debian: cmake, g++-aarch64-linux-gnu, qemu-user)" >&2; exit 2; }
done
kernels=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$kernels/build/aarch64}
cmake -S "$kernels" -B "$build" -DOFQ_SELFTEST=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static > /dev/null
cmake --build "$build" --target ofq_selftest > /dev/null
report=$(qemu-aarch64 -cpu max "$build/ofq_selftest") || { echo "$report"; exit 1; }
echo "$report"
for name in neon neon-i8mm; do
  echo "$report" | grep -Eq "^$name +compared" || { echo "aarch64.sh: $name was not compared" >&2; exit 1; }
done
