"""The hooks of a run by role: clustering, training, evaluation, checkpoints, records, writers."""
