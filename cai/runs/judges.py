"""The judges that a run file or a command names."""
