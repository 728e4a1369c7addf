# Debian's static busybox: the shell of the builds, and what unpacks the first Python.
{ lib, input }:
"${input {
  name = "busybox";
  sha256 = (lib.json "docker/locks/busybox.json").nar;
  executable = true;
  goal = "make nix-inputs";
}}/busybox"
