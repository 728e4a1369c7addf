"""Container images made from locks alone: the same parts give the same bytes, without an engine, root or network."""
