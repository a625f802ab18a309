"""Models that answer: engines, the cache above them, and the scheduler that keeps them busy."""
