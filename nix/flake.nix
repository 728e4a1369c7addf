{
  description = "Temper: a fine-tuned model as a build product";
  # No inputs: the tool chain is the locked image of this repository, see docs/nix.md.
  outputs = { self }: {
    packages.x86_64-linux = import ./. { };
    devShells.x86_64-linux.default = (import ./. { }).shell;
  };
}
