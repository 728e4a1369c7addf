#!/usr/bin/env bash
# Resolve docker/locks/*.in into hash-locked *.txt for Python 3.11 to 3.13 on Linux and show what moved.
# uv resolves: pip cannot lock for several Python versions at once. It asks the sources that pip's environment names.
# Lock files hold names, versions and hashes, never addresses.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TOOLS=build/lock-tools
LOCKS=docker/locks
# Builds of torch 2.13.0+cpu that this machine's sources may not offer: CPython 3.11, 3.12 and 3.13 on x86-64,
# 3.11 and 3.12 on aarch64. Change them with the version.
TORCH_VERSION=2.13.0+cpu
TORCH_HASHES=(
  6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
  4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2
  3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6
  84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7
  6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604
)

[[ -x $TOOLS/bin/uv ]] || { python3 -m venv "$TOOLS"; "$TOOLS/bin/pip" install --quiet uv; }

resolve() {  # $1: name, further: options of uv
  local name=$1; shift
  "$TOOLS/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-annotate --no-header ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} "$@" \
    "$LOCKS/$name.in" -o "$LOCKS/$name.txt"
}

add_torch_hashes() {
  local hashes; hashes=$(printf '    --hash=sha256:%s \\\n' "${TORCH_HASHES[@]}")
  TORCH=$TORCH_VERSION HASHES=${hashes%\\} awk '
    $0 ~ "^torch==" { print "torch==" ENVIRON["TORCH"] " \\"; print ENVIRON["HASHES"]; skip = 1; next }
    skip && /^ / { next }
    { skip = 0; print }' "$LOCKS/cpu.txt" >"$LOCKS/cpu.new"
  mv "$LOCKS/cpu.new" "$LOCKS/cpu.txt"
}

# LLaMA Factory and transformers as files to read, without what they depend on.
add_sources() {
  awk '/^[a-z]/ { keep = /^(llamafactory|transformers)==/ } keep' "$LOCKS/cpu.txt" >>"$LOCKS/host.txt"
}

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
cp "$LOCKS"/*.txt "$before/"
for name in ${*:-cpu cuda host dev ray track lm-eval sign nix bench test-tf451 test-tf5 test-text-generation temper-cpu temper-cuda temper-nix}; do
  case $name in
    cpu) resolve cpu --override "$LOCKS/absent.txt" ${UPGRADE:+--upgrade}; add_torch_hashes ;;
    dev | ray | track | lm-eval | sign) resolve "$name" --constraints "$LOCKS/cpu.txt" ${UPGRADE:+--upgrade} ;;
    test-text-generation) resolve "$name" ${UPGRADE:+--upgrade} ;;
    test-*) resolve "$name" --no-deps ${UPGRADE:+--upgrade} ;;
    # Without this machine's find-links: a CPU build of torch among them would stand for the CUDA build.
    cuda) PIP_FIND_LINKS="" resolve cuda ${UPGRADE:+--upgrade} ;;
    nix) resolve nix --constraints "$LOCKS/host.txt" ${UPGRADE:+--upgrade} ;;
    host) resolve host --constraints "$LOCKS/cpu.txt" ${UPGRADE:+--upgrade}; add_sources ;;
    temper-*) make --silent .venv-host/installed; PYTHONPATH=scripts .venv-host/bin/python -m temper.images resolve "$name"; continue ;;
    *) resolve "$name" ${UPGRADE:+--upgrade} ;;
  esac
  diff <(grep -E '^[a-z]' "$before/$name.txt" 2>/dev/null) <(grep -E '^[a-z]' "$LOCKS/$name.txt") |
    sed -n 's/ \\$//; s/^</  was/p; s/^>/  now/p' | sed "s/^/$name/" || true
done
echo "lock    $LOCKS is resolved"
