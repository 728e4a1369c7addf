# The adapter, by LLaMA Factory.
{ stage, base, data }:
stage { stage = "train"; name = "adapter"; results = { inherit base data; }; }
