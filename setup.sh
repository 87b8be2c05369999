#!/usr/bin/env bash
# Set up KaVa: a Python environment with the locked packages, and the folders that runs write to.
#
#   bash setup.sh            set up (or check) and report
#   bash setup.sh --quick    the same, silent when everything is in place
#   bash setup.sh --python   print the environment's Python and do nothing else
#
# Environment: KAVA_VENV if set, else the active one (venv or conda), else .venv here.
# Packages: requirements.txt, or the file that KAVA_LOCK names.
# A new environment is made with KAVA_PYTHON if set, else with the first Python >= 3.10 that is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

step="starting"
trap 'echo "setup: failed while $step; nothing after that was done" >&2' ERR

fail() {
    echo "setup: $1" >&2
    exit 1
}

environment() {
    if [ -n "${KAVA_VENV:-}" ]; then
        echo "$KAVA_VENV"
    elif [ -n "${VIRTUAL_ENV:-}" ]; then
        echo "$VIRTUAL_ENV"
    elif [ -n "${CONDA_PREFIX:-}" ]; then
        echo "$CONDA_PREFIX"
    else
        echo "$PWD/.venv"
    fi
}

python_in() { # the interpreter of an environment; Windows keeps it elsewhere
    local place
    for place in "$1/bin/python" "$1/Scripts/python.exe" "$1/python.exe"; do
        if [ -x "$place" ]; then
            echo "$place"
            return
        fi
    done
}

works() { # it runs (a pyenv shim may not) and is new enough
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() { # 3.11 first: the lock was tested with it
    local name
    for name in ${KAVA_PYTHON:+"$KAVA_PYTHON"} python3.11 python3.12 python3.13 python3.10 python3 python; do
        if works "$name"; then
            echo "$name"
            return
        fi
    done
}

fingerprint() { # what an installed environment depends on
    "$python" - "$lock" <<'PY'
import hashlib, os, sys
digest = hashlib.sha256(f"{sys.version_info[:2]} {os.getcwd()}".encode())
for name in (sys.argv[1], "pyproject.toml"):
    digest.update(open(name, "rb").read())
print(digest.hexdigest())
PY
}

report() {
    "$python" - <<'PY'
import os, pathlib, platform
import torch

print(f"  python     {platform.python_version()}")
print(f"  torch      {torch.__version__}")
if torch.cuda.is_available():
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    print(f"  CUDA       {torch.version.cuda}, {torch.cuda.device_count()} GPU: {names}")
else:
    print("  CUDA       not available, 0 GPUs: runs use the CPU")
home = pathlib.Path(os.environ.get("HF_HOME") or pathlib.Path.home() / ".cache" / "huggingface")
files = [os.environ.get("HF_TOKEN_PATH"), home / "token", ".huggingface/token"]
token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
token = token or any(file and pathlib.Path(file).is_file() for file in files)
print("  HF login   " + ("token found" if token else "no token; needed only for gated models: hf auth login"))
PY
}

lock="${KAVA_LOCK:-requirements.txt}"
env_dir="$(environment)"
python="$(python_in "$env_dir")"
case "${1:-}" in
    --python)
        [ -n "$python" ] || fail "no environment at $env_dir; run: bash setup.sh"
        echo "$python"
        exit 0
        ;;
    "" | --quick) ;;
    *) fail "unknown flag $1; flags: --quick, --python" ;;
esac

if [ -z "$python" ]; then
    step="looking for Python"
    base="$(find_python)"
    [ -n "$base" ] || fail "no Python >= 3.10 found; install one, or set KAVA_PYTHON=/path/to/python"
    step="making the environment $env_dir (on Debian and Ubuntu this needs the package python3-venv)"
    echo "making $env_dir with $("$base" --version)"
    "$base" -m venv "$env_dir"
    python="$(python_in "$env_dir")"
    step="upgrading pip"
    "$python" -m pip install --quiet --upgrade pip
fi
works "$python" || fail "$python is older than Python 3.10 or does not run"

[ -f "$lock" ] || fail "no such list of packages: $lock"
stamp="$env_dir/.kava-setup"
step="reading the lock"
wanted="$(fingerprint)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    rm -f "$stamp"
    step="looking for pip in $env_dir"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null
    step="installing the packages of $lock"
    echo "installing the locked packages (a minute or two, 1.7 GB) ..."
    "$python" -m pip install --disable-pip-version-check -r "$lock"
    step="installing kava itself"
    "$python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
    echo "$wanted" >"$stamp"
elif [ "${1:-}" = "--quick" ] && [ -d .huggingface ]; then
    exit 0
fi

step="making folders"
mkdir -p logs outputs cache data .huggingface

step="checking the installation"
echo "environment  $env_dir"
report
"$python" -m kava --version >/dev/null

echo "next:  make demo      (or: \"$python\" -m kava --help)"
