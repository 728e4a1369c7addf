# The merged model, past the gate.
{ stage, base, data, adapter }:
stage { stage = "merge"; name = "merged"; results = { inherit base data adapter; }; }
