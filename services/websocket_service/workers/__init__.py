"""Several processes that serve one port: see `supervisor`."""
