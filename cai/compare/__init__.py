"""Runs side by side, from their folders alone: what differs between them, and what came of it."""
