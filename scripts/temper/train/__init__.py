"""The train stage: LLaMA Factory with settings that fit the machine, watched, resumable."""
