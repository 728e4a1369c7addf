"""The CPU server: TGI 3.3.7's HTTP API for a merged Hugging Face folder, and its control from make."""
