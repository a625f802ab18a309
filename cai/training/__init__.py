"""From labelled rows to a trained policy: one module a stage, its settings beside it."""
