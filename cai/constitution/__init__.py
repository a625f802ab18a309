"""Constitutions: principles, how they are put to a model, what may be wrong with them, and external formats."""
