# The answers of base and tuned model, and their scores. Both are served on the build's own loopback.
{ stage, base, data, merged, files }:
stage { stage = "eval"; results = { inherit base data merged; }; more = files ++ [ "data/retention" ]; }
