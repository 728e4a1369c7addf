"""Whether the tuned model is better than the base model: questions, scores, intervals and the gate."""
