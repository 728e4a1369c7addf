# A file that a goal of Make has put into the store. It is known by its sha256; nothing is fetched here, and where the
# file is absent the message says what to run.
{ }:
{ sha256, goal, name ? sha256, executable ? false }:
derivation {
  inherit name executable;
  system = "builtin";
  builder = "builtin:fetchurl";
  url = "there is no ${name} in the Nix store; run: ${goal}";
  unpack = false;
  outputHash = sha256;
  outputHashAlgo = "sha256";
  outputHashMode = if executable then "recursive" else "flat";
  allowSubstitutes = false;
  preferLocalBuild = true;
}
