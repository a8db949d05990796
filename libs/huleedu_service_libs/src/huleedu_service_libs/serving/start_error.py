class StartError(Exception):
    """The server can't start; the message says why, and what to do, in one line."""
