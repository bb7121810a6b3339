"""The one exception that a user is meant to read."""


class UserMistake(ValueError):
    """One clear sentence: what is wrong, where, and what to do. Commands print it and exit with 1."""
