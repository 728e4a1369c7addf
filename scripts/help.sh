#!/usr/bin/env bash
# Print the help page of a Makefile from its own comments: goals by group, settings, and what configs/ offers.
set -euo pipefail
awk '
  /^##@ /              { printf "\n%s\n", substr($0, 5); next }
  /^[A-Z_]+ \?=.*##/   { split($0, half, /[ \t]*## /); name = half[1]; sub(/ \?=.*/, "", name)
                         value = half[1]; sub(/^[A-Z_]+ \?= */, "", value)
                         printf "  %-12s %-18s %s\n", name, value, half[2]; next }
  /^[a-z][a-z-]*:.*##/ { split($0, half, /[ \t]*## /); name = half[1]; sub(/:.*/, "", name)
                         printf "  make %-12s %s\n", name, half[2] }
' "$1"
for kind in Scenarios Profiles Models; do
  printf '\n%s\n' "$kind"
  for file in configs/"${kind,,}"/*.yaml; do
    if [[ -e $file ]]; then
      printf '  %-24s %s\n' "$(basename "$file" .yaml)" "$(sed -n '1s/^# *//p' "$file")"
    fi
  done
done
