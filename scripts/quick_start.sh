#!/usr/bin/env bash
# Take one scenario from its rows to a server that answers, in one word: `make quickstart SCENARIO=…` and why.
# Exit codes: 2 for an unknown scenario or option, otherwise make's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each scenario with the first comment of its file.
scenarios() {
  local file
  for file in configs/scenarios/*.yaml; do
    printf '  %-18s %s\n' "$(basename "$file" .yaml)" "$(sed -n '1s/^# *//p' "$file")"
  done
}

usage() { cat <<TEXT
usage: ./scripts/quick_start.sh SCENARIO [MAKE'S WORDS]

$(scenarios)

Makes the environment, the base model, the data, an adapter and the merged model, serves it on 127.0.0.1, asks it the
scenario's questions beside the base model, and fails if a tuned answer is not what the data says. Needs no GPU.
What is already made is not made again. Further words go to make: PORT=8001, SET='train.num_train_epochs=8', -n.

  ./scripts/quick_start.sh customer-service
  make ask SCENARIO=customer-service Q='What is the warranty on the L9 desk lamp?'
  make stop SCENARIO=customer-service
TEXT
}

fail() { echo "error: $1; $2" >&2; exit "$3"; }

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  "") fail "there is no scenario" "name one of: $(cd configs/scenarios && echo *.yaml | sed 's/\.yaml//g')" 2 ;;
  -*) fail "unknown option $1" "see ./scripts/quick_start.sh --help" 2 ;;
esac
scenario=$1
shift
[[ $scenario != */* && -f configs/scenarios/$scenario.yaml ]] ||
  fail "there is no scenario $scenario" "there are: $(cd configs/scenarios && echo *.yaml | sed 's/\.yaml//g')" 2
command -v make >/dev/null || fail "there is no make" "apt-get install make" 11

echo "quick start: make quickstart SCENARIO=$scenario${*:+ $*}"
exec make quickstart "SCENARIO=$scenario" "$@"
