# The code that each stage runs, so that a change to another stage's rebuilds nothing of this one.
let
  package = map (name: "scripts/temper/${name}");
  common = package [
    "__init__.py" "__main__.py" "child.py" "determinism.py" "digests.py" "errors.py" "locking.py" "paths.py"
    "data/__init__.py" "data/options.py" "pipeline.py" "provenance.py" "reexec.py" "runtime.py" "stage.py" "config" "models"
    "images/__init__.py" "images/layers.py" "images/oci.py" "images/parts.py" "images/pinned.py"
    "train/__init__.py" "train/machine.py"
  ];
  door = name: [ "scripts/llamafactory/${name}.py" ];
  serving = package [ "containers.py" "eval" "images" "merge" "page.py" "serve" "tracking.py" ];
in
{
  model = common;
  data = common ++ package [ "data" "page.py" ] ++ door "data_processor";
  train = common ++ package [ "data" "plan" "tracking.py" "train" ] ++ door "train_model";
  merge = common ++ package [ "merge" ] ++ door "merge_model";
  eval = common ++ serving;
  report = common ++ serving ++ package [ "data" "plan" "report" "train" ];
}
