#!/usr/bin/env bash
# Build the operators with AddressSanitizer and UndefinedBehaviorSanitizer and run their tests on that build.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
# vptr: Paddle's own header casts between types that two libraries each describe
flags=(-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1)
library=$("$python" -m paddle_ds.kernels.build "$PWD/.cache/sanitized" "${flags[@]}" | tail -n 1)
asan=$("${CXX:-g++}" -print-file-name=libasan.so)
ubsan=$("${CXX:-g++}" -print-file-name=libubsan.so)
# Python and Paddle keep memory to the end on purpose, and Paddle throws through frames that are not instrumented
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1
# the sanitizer's dlopen does not see the caller's search path, through which Paddle finds its own libraries
LD_LIBRARY_PATH=$("$python" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("paddle").origin).parent / "libs")')
export LD_LIBRARY_PATH
export PADDLE_DS_OPERATORS=$library LD_PRELOAD="$asan $ubsan" OMP_NUM_THREADS=2
exec "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_compiled_operators.py tests/kernels/test_grouped_linear.py \
  tests/kernels/test_static_kv_scales.py tests/kernels/test_fused_decoder.py tests/export/test_export_operators.py -k "not instruction_set" "$@"
