# A development shell: the image's Python and programs, on the working tree. nix develop ./nix, or nix-shell nix -A shell.
{ lib, busybox, python }:
let
  # What both commands read before they start a shell.
  setup = builtins.toFile "setup" ''
    export PATH=${"$python"}/bin:$PATH PYTHONPATH=scripts PYTHONDONTWRITEBYTECODE=1
  '';
in
lib.build {
  name = "temper";
  inherit python;
  outputs = [ "out" ]; # nix develop reads the variable
  builder = "${python}/bin/bash";
  args = [ "-euc" ": >$out" ];
  stdenv = lib.build {
    name = "setup";
    builder = busybox;
    args = [ "sh" "-euc" "${busybox} mkdir $out && ${busybox} cp ${setup} $out/setup" ];
  };
}
