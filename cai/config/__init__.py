"""Reading what users write: YAML with line numbers, errors in their words; finding files; hashing."""
