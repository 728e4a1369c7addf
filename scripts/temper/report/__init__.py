"""What a run came to: the page to decide by, the model card, and tables of several runs."""
