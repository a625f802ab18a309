"""The two kinds of trouble `cai` tells apart: the user's to mend, and one example's alone."""


class CaiError(Exception):
    """Something the user can put right; printed without a traceback, exit status 2.

    The message names the file, the line or field, what was found and what was expected.
    """


class RequestRefused(Exception):
    """A model cannot answer this one request (too long, say): a counted failure, not the end of a run."""
