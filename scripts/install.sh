#!/bin/sh
# Make .venv and install smalti into it: install.sh PYTHON TORCH WHAT, as the Makefile calls it.
set -eu
python=$1 torch=$2 what=$3

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11; install Python 3.11 or later, or name one: make PYTHON=python3.12" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $python has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2
    exit 2
fi
if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    echo "note: no C++ compiler, so nothing is compiled and training is slower; on Debian or Ubuntu: apt-get install g++" >&2
fi

test -x .venv/bin/python || "$python" -m venv .venv
if [ "$torch" = cpu ] && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    .venv/bin/python -m pip install --quiet --index-url https://download.pytorch.org/whl/cpu 'torch>=2.10'
fi
echo "installing smalti and what it needs into .venv (once, a few minutes)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$what"
