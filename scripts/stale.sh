# Read by the Makefile's shell: note what was asked for, and delete the list of each stage that has to look again.
# In: scenario, profile, state (the folder of what Make watches), asked (RUNTIME, MODEL, SET), and two arrays:
# stages, and look, the command that renews the lists of the stages whose files have the same bytes as before.
# With nothing changed this starts one process, stat; a process for each stage would double the cost of a make.
# shellcheck shell=bash disable=SC2154
for file in "configs/scenarios/$scenario.yaml" "configs/profiles/$profile.yaml"; do
  if [[ ! -f $file ]]; then
    echo "error: there is no $file; there are: $(cd "${file%/*}" && echo *.yaml)" >&2
    exit 3
  fi
done

cannot_write() {
  echo "error: $state cannot be written; free some space, chown or chmod it, or choose another place with BUILD=DIR" >&2
  exit 10
}

# Files as "ctime size inode name"; those that are gone are left out.
stamps() { stat -Lc '%.9Z %s %i %n' -- "$@" 2>/dev/null || true; }

# Whether every file of stages $@ is as their lists say.
current() {
  local stage files=() known=()
  for stage in "$@"; do
    [[ -f $state/$stage.list && -f $state/$stage.paths ]] || return 1
    mapfile -d '' -t -O ${#files[@]} files <"$state/$stage.paths"
    mapfile -t -O ${#known[@]} known <"$state/$stage.list"
  done
  [[ "$(stamps "${files[@]}")" == "${known[*]}" ]]
}

IFS=$'\n' # joins "${array[*]}"
before=()
if [[ -f $state/settings ]]; then mapfile -t before <"$state/settings"; fi
if [[ "${before[*]}" != "$asked" ]]; then
  [[ -d $state ]] || mkdir -p "$state" || cannot_write
  printf '%s\n' "$asked" >"$state/settings" || cannot_write
fi

# What follows a stage that looks again looks too: a clock that was set back must not make its .done seem new enough.
if ! current "${stages[@]}"; then
  while [[ ${#stages[@]} -gt 0 ]] && current "${stages[0]}"; do stages=("${stages[@]:1}"); done
  for stage in "${stages[@]}"; do
    [[ ! -e $state/$stage.list ]] || rm -f "$state/$stage.list" || cannot_write
  done
  # One Python for all stages, where Make would start one for each; pointless where nothing was made yet.
  if [[ -f $state/${stages[0]}.paths ]]; then "${look[@]}"; fi
fi
