# The locked image, unpacked: the bytes that Docker and podman run.
{ lib, input, busybox, image }:
let
  layers = map
    (layer: input {
      sha256 = builtins.substring 7 64 layer.diff_id;
      goal = lib.goal image;
    })
    (lib.json "docker/images.lock").${image}.layers;
  libraries = "usr/lib/x86_64-linux-gnu";
in
lib.build {
  name = image;
  inherit layers;
  builder = busybox;
  # busybox cuts long names off, so it unpacks only the Python that unpacks everything.
  args = [ "sh" "-euc" ''
    ${busybox} mkdir first
    ${busybox} tar -x -C first -f ${builtins.head layers} usr/bin usr/lib
    PYTHONHOME=first/usr first/${libraries}/ld-linux-x86-64.so.2 --library-path first/${libraries} \
      first/usr/bin/python3.11 -c '
    import sys, tarfile
    for layer in sys.argv[2:]:
        with tarfile.open(layer) as archive:
            archive.extractall(sys.argv[1])
    ' "$out" $layers
  '' ];
}
