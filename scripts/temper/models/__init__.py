"""Base models: what each is, where it comes from, and getting it here with every byte checked."""
