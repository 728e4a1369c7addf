"""What a make would run, why, and what it needs, without running it."""
