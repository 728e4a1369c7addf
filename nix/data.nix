# The rows: checked, cleaned, split and counted.
{ stage, base, files }:
stage { stage = "data"; results = { inherit base; }; more = files; }
