"""For tests and demos. Nothing in production imports it."""
