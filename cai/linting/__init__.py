"""Reading a constitution critically before any model does: what is written where, and what it may do."""
