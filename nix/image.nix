# An image from its locked parts, as `make image` builds it: an OCI layout, whose digest must be the one in the lock.
{ lib, input, busybox, image }:
let
  goal = "${lib.goal image} PARTS=1";
  part = line:
    let m = builtins.match "(deb|wheel|sdist) +[^ ]+ [^ ]+ [^ ]+ ([0-9a-f]{64})" line; in
    if m == null then [ ] else [{
      kind = builtins.head m;
      name = builtins.elemAt m 1;
      value = "${input { sha256 = builtins.elemAt m 1; inherit goal; }}";
    }];
  parts = list: builtins.concatMap part (lib.lines "docker/locks/${list}.parts");
  paths = kind: list: map (found: found.value) (builtins.filter (found: found.kind == kind) (parts list));
  code = map (name: "scripts/temper/${name}") [
    "__init__.py" "digests.py" "errors.py" "locking.py" "paths.py" "provenance.py" "stage.py"
    "images/__init__.py" "images/base.py" "images/build.py" "images/debian.py" "images/fetch.py" "images/layers.py"
    "images/oci.py" "images/parts.py" "images/pinned.py" "images/wheels.py"
  ];
in
lib.build {
  name = "image-${image}";
  inherit image;
  debs = paths "deb" image; # what runs while the image is built
  wheels = paths "wheel" "temper-nix";
  parts = builtins.toJSON (builtins.listToAttrs (parts image));
  passAsFile = [ "parts" ];
  lock = lib.lock image;
  source = lib.source "${image}-source" (code ++ [
    "docker/locks/${image}.parts" "docker/locks/${image}.prints" "scripts/shims"
  ]);
  builder = busybox;
  args = [ "sh" "-euc" ''
    for deb in $debs; do ${busybox} dpkg-deb -x "$deb" first; done
    for wheel in $wheels; do ${busybox} unzip -q "$wheel" -d tools; done
    libraries=first/lib/x86_64-linux-gnu:first/usr/lib/x86_64-linux-gnu
    PYTHONHOME=first/usr PYTHONPATH=tools first/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path $libraries \
      first/usr/bin/python3.11 -B ${./image.py}
  '' ];
}
