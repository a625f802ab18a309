"""The rows of a run, every file format in and out, and the manifest of a folder."""
