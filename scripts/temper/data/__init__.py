"""Raw rows in; the rows LLaMA Factory trains on, the rows held out, and an account of every other row out."""
