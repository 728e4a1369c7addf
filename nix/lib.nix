# What the other files share: the platform, filtered sources, and the little that is read of locks and settings.
let
  root = ../.;
  under = "${toString root}/";
  length = builtins.stringLength;
  within = folder: path: path == folder || builtins.substring 0 (length folder + 1) path == "${folder}/";
  strings = builtins.filter builtins.isString;
  compiled = path: builtins.match ".*(/__pycache__|[.]pyc)" path != null;
in
rec {
  system = "x86_64-linux"; # that of the images

  # Nobody is asked whether he has the result: an air-gapped site has nobody to ask.
  build = settings: derivation ({ inherit system; allowSubstitutes = false; preferLocalBuild = true; } // settings);

  # The files at or below `paths`, and nothing else of the repository: a change elsewhere changes no derivation.
  source = name: paths: builtins.path {
    inherit name;
    path = root;
    filter = path: type:
      let own = builtins.substring (length under) (length path) path; in
      !compiled own && builtins.any (wanted: within wanted own || type == "directory" && within own wanted) paths;
  };

  exists = path: builtins.pathExists (root + "/${path}");
  read = path: builtins.readFile (root + "/${path}");
  json = path: builtins.fromJSON (read path);
  lock = image: builtins.toFile "images.lock" (builtins.toJSON { ${image} = (json "docker/images.lock").${image}; });
  goal = image: "make nix-inputs PROFILE=${if image == "temper-cpu" then "cpu" else "gpu-24g"}"; # provides its layers
  lines = path: strings (builtins.split "\n" (read path));

  # The value of a top-level key of a YAML file, null where it has none.
  key = name: path:
    let found = builtins.concatMap (line: let m = builtins.match "${name}: *([^ #]+).*" line; in if m == null then [ ] else m) (lines path);
    in if found == [ ] then null else builtins.head found;

  # The files below data/ that a YAML file names.
  data = path: builtins.concatMap (part: if builtins.isList part then part else [ ])
    (builtins.split "(data/[A-Za-z0-9_./-]+)" (read path));

  # The names of the YAML files in a folder.
  names = folder: builtins.concatMap
    (file: let m = builtins.match "(.*)[.]yaml" file; in if m == null then [ ] else m)
    (builtins.attrNames (builtins.readDir (root + "/${folder}")));

  each = names: value: builtins.listToAttrs (map (name: { inherit name; value = value name; }) names);
}
