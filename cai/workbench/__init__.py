"""Trying constitutions out: `cai try`, `cai constitution test`."""
