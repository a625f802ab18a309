"""Reading what people write: YAML with line numbers, errors in their words, hashing."""
