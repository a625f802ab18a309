"""The run folder: its files, the order of its stages, comparing and reporting."""
