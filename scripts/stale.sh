# Read by the Makefile's shell: note what was asked for, and touch the list of each stage whose files have changed.
# In: scenario, profile, state (the folder of what Make watches), asked (RUNTIME, MODEL, SET),
# stages (an array).
# With nothing changed this starts one process, stat; a process for each stage would double the cost of a make.
# shellcheck shell=bash disable=SC2154
for file in "configs/scenarios/$scenario.yaml" "configs/profiles/$profile.yaml"; do
  if [[ ! -f $file ]]; then
    echo "error: there is no $file; there are: $(cd "${file%/*}" && echo *.yaml)" >&2
    exit 3
  fi
done

# The files named in $1.paths, NUL between names, as "ctime size inode name"; names that are gone are left out.
stamps() { stat -Lc '%.9Z %s %i %n' -- "$@" 2>/dev/null || true; }

IFS=$'\n' # joins "${array[*]}"
before=() files=() known=()
if [[ -f $state/settings ]]; then mapfile -t before <"$state/settings"; fi
if [[ "${before[*]}" != "$asked" ]]; then
  [[ -d $state ]] || mkdir -p "$state"
  printf '%s\n' "$asked" >"$state/settings"
fi

for stage in "${stages[@]}"; do
  if [[ -f $state/$stage.list && -f $state/$stage.paths ]]; then
    mapfile -d '' -t -O ${#files[@]} files <"$state/$stage.paths"
    mapfile -t -O ${#known[@]} known <"$state/$stage.list"
  else
    touch "$state/$stage.list"
  fi
done
if [[ ${#files[@]} -gt 0 && "$(stamps "${files[@]}")" != "${known[*]}" ]]; then
  for stage in "${stages[@]}"; do
    if [[ -f $state/$stage.paths ]]; then
      mapfile -d '' -t files <"$state/$stage.paths"
      mapfile -t known <"$state/$stage.list"
      [[ "$(stamps "${files[@]}")" == "${known[*]}" ]] || touch "$state/$stage.list"
    fi
  done
fi
