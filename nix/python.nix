# The Python of an unpacked image, its bash and its programs, started by the image's own loader: nothing is taken from the machine.
{ lib, busybox, root }:
let libraries = "${root}/usr/lib/x86_64-linux-gnu"; in
lib.build {
  name = "python";
  builder = busybox;
  args = [ "sh" "-euc" ''
    ${busybox} mkdir -p "$out/bin"
    put() { printf '%s\n' '#!${busybox} sh' "$2" >"$out/bin/$1"; ${busybox} chmod 755 "$out/bin/$1"; }
    put bash 'exec ${libraries}/ld-linux-x86-64.so.2 --argv0 "$0" --library-path ${libraries} ${root}/usr/bin/bash "$@"'
    put python3 'export PYTHONHOME=${root}/usr
    exec ${libraries}/ld-linux-x86-64.so.2 --argv0 "$0" --library-path ${libraries} ${root}/usr/bin/python3.11 "$@"'
    for program in ${root}/usr/local/bin/*; do
      put "''${program##*/}" "exec $out/bin/python3 $program \"\$@\""
    done
  '' ];
}
