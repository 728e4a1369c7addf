# One stage as a derivation: the program that Make runs, on the files it may read, in the locked image.
{ lib, code, scenario, profile, model, overrides, image, gpu, files, python }:
{ stage, name ? stage, place ? "build/${scenario}/${profile}/${name}", results ? { }, more ? [ ], settings ? { } }:
let
  locks = [ "docker/locks/${if gpu then "cuda" else "cpu"}.txt" "docker/locks/${image}.parts" ];
  asked = map (file: "configs/${file}") [
    "scenarios/${scenario}.yaml" "profiles/${profile}.yaml" "models/${model}.yaml" "models/${model}.sha256"
  ];
in
lib.build ({
  name = "${scenario}-${profile}-${name}";
  builder = "${python}/bin/python3";
  args = [ "-B" ./stage.py ];
  inherit stage place scenario profile model files;
  overrides = builtins.toJSON overrides;
  source = lib.source "temper-${name}" (code.${stage} ++ asked ++ locks ++ more);
  lock = lib.lock image;
  results = builtins.toJSON results;
  requiredSystemFeatures = if gpu then [ "cuda" ] else [ ];
} // settings)
