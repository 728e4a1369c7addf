# Everything that can be built: the results of each scenario, the images, a shell.
#   nix build ./nix#customer-service.gpu-24g
#   nix-build nix -A customer-service --argstr profile gpu-24g --argstr model qwen2.5-0.5b --argstr set 'train.lora_rank=8'
{ profile ? "cpu", model ? "", set ? "" }:
let
  lib = import ./lib.nix;
  input = import ./input.nix { };
  busybox = import ./busybox.nix { inherit lib input; };
  rootOf = image: import ./root.nix { inherit lib input busybox image; };
  pythonOf = image: import ./python.nix { inherit lib busybox; root = rootOf image; };

  results = scenario: profile:
    let
      file = "configs/scenarios/${scenario}.yaml";
      overlay = "configs/profiles/${profile}.yaml";
      found = builtins.filter (name: name != null && name != "") [ model (lib.key "model" overlay) (lib.key "model" file) ];
      gpu = lib.key "gpu" overlay == "true";
      image = if gpu then "temper-cuda" else "temper-cpu";
      files = lib.data file ++ lib.data overlay;
      stage = import ./stage.nix {
        inherit lib scenario profile image gpu files;
        code = import ./code.nix;
        model = builtins.head found;
        overrides = [ "--model=${model}" "--set=${set}" ];
        python = pythonOf image;
      };
      base = import ./base.nix { inherit lib input stage; model = builtins.head found; };
      data = import ./data.nix { inherit stage base files; };
      adapter = import ./adapter.nix { inherit stage base data; };
      merged = import ./merged.nix { inherit stage base data adapter; };
      eval = import ./eval.nix { inherit stage base data merged files; };
      report = import ./report.nix { inherit stage base data adapter merged eval; };
    in
    { inherit base data adapter merged eval report; };

  # A scenario is its merged model, and has its other results and its profiles as attributes.
  withResults = found: found.merged // found;
  profiles = lib.names "configs/profiles";
in
lib.each (lib.names "configs/scenarios")
  (scenario: withResults (results scenario profile) // lib.each profiles (name: withResults (results scenario name)))
// {
  image-cpu = import ./image.nix { inherit lib input busybox; image = "temper-cpu"; };
  image-cuda = import ./image.nix { inherit lib input busybox; image = "temper-cuda"; };
  shell = import ./shell.nix { inherit lib busybox; python = pythonOf "temper-cpu"; };
}
