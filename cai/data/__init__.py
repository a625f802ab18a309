"""The rows that flow through a run, and every file format read or written."""
