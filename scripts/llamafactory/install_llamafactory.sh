#!/usr/bin/env bash
# Make .venv with LLaMA Factory from a hash-locked list, .venv-cuda for GPU profiles (not yet run on a GPU), or
# .venv-host, the little that a host needs whose stages run in containers.
# pip's own configuration decides where packages come from: indexes, find-links, proxies, certificates.
# Settings: PYTHON (default python3), TORCH_INDEX (used only when none of pip's own sources has the locked torch).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
VENV=.venv LOCK=docker/locks/cpu.txt SIZE=0.6
if [[ ${1:-} == --cuda ]]; then VENV=.venv-cuda LOCK=docker/locks/cuda.txt SIZE=3; fi
if [[ ${1:-} == --host ]]; then VENV=.venv-host LOCK=docker/locks/host.txt SIZE=0.1; fi

fail() { echo "error: $1; $2" >&2; exit 11; }

usage() { cat <<'TEXT'
usage: bash scripts/llamafactory/install_llamafactory.sh [--dev | --ray | --track | --lm-eval | --sign | --cuda | --host]
Makes .venv from docker/locks/cpu.txt; pip's own configuration decides where packages come from.
  --dev      also what `make test` and `make check` need
  --ray      also Ray, for data.engine: ray
  --track    also tensorboard, wandb, swanlab and mlflow, for train.report_to
  --lm-eval  also lm-evaluation-harness, for make eval TASKS=…
  --sign     also model-signing, for make sign
  --cuda     .venv-cuda from docker/locks/cuda.txt, for profiles that need a GPU
  --host     .venv-host from docker/locks/host.txt, for a host whose stages run in containers
TEXT
}

# Install a lock into .venv: pip checks every hash and resolves nothing.
install_lock() {
  local extra=()
  if grep -q '^torch==.*+cpu' "$1" && ! has_torch "$1"; then
    extra=(--extra-index-url "$TORCH_INDEX")
    echo "install torch from $TORCH_INDEX: none of pip's own sources has it"
  fi
  "$VENV/bin/python" -m pip install --disable-pip-version-check --no-deps --require-hashes --progress-bar on \
    ${extra[@]+"${extra[@]}"} -r "$1" | grep -v '^\(Ignoring \|Requirement already\|Looking in\|Using cached\|  Using cached\)' || {
      local code=("${PIPESTATUS[@]}")
      [[ ${code[0]} == 0 ]] || fail "pip could not install $1 (code ${code[0]})" \
        "see its message above; behind a proxy or mirror set pip's configuration or TORCH_INDEX, then run it again"
    }
}

# Whether pip's own sources, as configured, have the torch that the lock names.
has_torch() {
  local want; want=$(sed -n 's/^\(torch==[^ ;\\]*\).*/\1/p' "$1" | head -1)
  "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --dry-run --no-deps "$want" >/dev/null 2>&1
}

check_python() {
  command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON" "apt-get install python3 python3-venv"
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$("$PYTHON" --version) is not 3.11, 3.12 or 3.13" "set PYTHON=python3.11, or another of these"
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "$PYTHON has no venv module" "apt-get install python3-venv"
}

make_environment() {
  [[ -x $VENV/bin/python ]] && "$VENV/bin/python" -c '' 2>/dev/null || { rm -rf "$VENV"; "$PYTHON" -m venv "$VENV"; }
  install_lock "$LOCK"
  # LLaMA Factory imports torchaudio when it starts; scripts/shims has a stand-in for text-only work on a CPU.
  local site; site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  if [[ $VENV == .venv ]]; then echo "$PWD/scripts/shims" >"$site/temper-shims.pth"; fi
  sha256sum "$LOCK" >"$VENV/installed"
}

case $* in
  "" | --dev | --ray | --track | --lm-eval | --sign | --cuda | --host) ;;
  -h | --help) usage; exit 0 ;;
  *) echo "error: unknown option $*; see bash scripts/llamafactory/install_llamafactory.sh --help" >&2; exit 2 ;;
esac
check_python
started=$SECONDS
if [[ ! -f $VENV/installed ]] || ! sha256sum --status -c "$VENV/installed" 2>/dev/null; then
  echo "install $VENV from $LOCK (about $SIZE GB to download)"
  make_environment
fi
touch "$VENV/installed"
if [[ ${1:-} == --dev || ${1:-} == --ray || ${1:-} == --track || ${1:-} == --lm-eval || ${1:-} == --sign ]]; then
  more=${1#--}
  echo "install docker/locks/$more.txt"
  install_lock "docker/locks/$more.txt"
  sha256sum "docker/locks/$more.txt" >"$VENV/installed-$more"
fi
echo "install $VENV is ready  [$(du -sh "$VENV" | cut -f1), $((SECONDS - started)) s]"
