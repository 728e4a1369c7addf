# The base model, from its files as published: each by the sha256 in configs/models/NAME.sha256.
{ lib, input, stage, model }:
let
  recorded = "configs/models/${model}.sha256";
  line = text: builtins.match "([0-9a-f]{64}) [ *](.+)" text;
  file = known: {
    name = builtins.elemAt known 1;
    value = input { sha256 = builtins.head known; goal = "make nix-inputs, for base model ${model}"; };
  };
  listed = builtins.filter (known: known != null) (map line (lib.lines recorded));
in
if !lib.exists recorded then throw "${recorded}: no digests of ${model} are recorded yet; run: make model MODEL=${model}" else
stage {
  stage = "model";
  place = "build/models/${model}";
  settings.kept = builtins.toJSON (builtins.listToAttrs (map file listed));
}
