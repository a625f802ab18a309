"""Working on constitutions: `cai try`, `cai constitution test`."""
