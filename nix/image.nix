# An image from its locked parts, as `make image` builds it: an OCI layout, whose digest must be the one in the lock.
{ lib, input, busybox, image }:
let
  goal = "make nix-inputs PARTS=1 PROFILE=${if image == "temper-cpu" then "cpu" else "gpu-24g"}";
  part = line:
    let m = builtins.match "(deb|wheel|sdist) +([^ ]+) ([^ ]+) ([^ ]+) ([0-9a-f]{64})" line; in
    if m == null then [ ] else [{
      kind = builtins.elemAt m 0;
      name = builtins.elemAt m 1;
      file = builtins.elemAt m 3;
      path = "${input { sha256 = builtins.elemAt m 4; inherit goal; }}";
    }];
  parts = list: builtins.concatMap part (lib.lines "docker/locks/${list}.parts");
  first = name: map (found: found.path) (builtins.filter (found: found.kind == "deb" && name found.name) (parts image));
  wheels = map (found: found.path) (builtins.filter (found: found.kind == "wheel") (parts "temper-nix"));
  code = map (name: "scripts/temper/${name}") [
    "__init__.py" "digests.py" "errors.py" "locking.py" "paths.py" "provenance.py" "stage.py"
    "images/__init__.py" "images/base.py" "images/build.py" "images/debian.py" "images/fetch.py" "images/layers.py"
    "images/oci.py" "images/parts.py" "images/pinned.py" "images/wheels.py"
  ];
in
lib.build {
  name = "image-${image}";
  inherit image wheels;
  parts = builtins.toJSON (parts image);
  passAsFile = [ "parts" ];
  source = lib.source "${image}-source" (code ++ [
    "docker/images.lock" "docker/locks/${image}.parts" "docker/locks/${image}.prints" "scripts/shims"
  ]);
  debs = first (name: true);
  builder = busybox;
  args = [ "sh" "-euc" ''
    for deb in $debs; do ${busybox} dpkg-deb -x "$deb" first; done
    for wheel in $wheels; do ${busybox} unzip -q "$wheel" -d tools; done
    libraries=first/lib/x86_64-linux-gnu:first/usr/lib/x86_64-linux-gnu
    PYTHONHOME=first/usr PYTHONPATH=tools first/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path $libraries \
      first/usr/bin/python3.11 -B ${./image.py}
  '' ];
}
