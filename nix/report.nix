# The page to decide by. Times are of one run and no part of a derivation's result: make report has them.
{ stage, base, data, adapter, merged, eval }:
stage { stage = "report"; results = { inherit base data adapter merged eval; }; }
