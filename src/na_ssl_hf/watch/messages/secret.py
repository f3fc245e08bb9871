"""Read secrets from where they belong: the environment or a file, never the command line."""

import os
from pathlib import Path


def read_secret(name: str, variable: str | None = None, file: str | Path | None = None) -> str | None:
    """Return a secret without the white space around it; None where neither place is named.

    Args:
        name: what the secret is, for error messages.
        variable: an environment variable that holds it.
        file: a file that holds it.

    Raises:
        ValueError: both places are named, the variable is not set, or the secret is empty.
        OSError: the file cannot be read.
    """
    if variable is not None and file is not None:
        raise ValueError(f"{name} must come from one place, got the variable {variable} and the file {file}")
    if variable is not None:
        if variable not in os.environ:
            raise ValueError(f"{name} must be in the environment variable {variable}, which is not set")
        secret, place = os.environ[variable].strip(), f"the environment variable {variable}"
    elif file is not None:
        secret, place = Path(file).read_text(encoding="utf-8").strip(), str(file)
    else:
        return None
    if not secret:
        raise ValueError(f"{name} must not be empty, got an empty one from {place}")
    return secret
