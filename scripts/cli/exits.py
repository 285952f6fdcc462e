"""The exit codes of `model-serving`, and the one exception that ends a command early."""

from enum import IntEnum


class Exit(IntEnum):
    """What the shell sees. 2 is also what the parser of the command line gives."""

    OK = 0
    REFUSED = 1  # the service refused, or the command failed
    USAGE = 2
    NO_CONNECTION = 3
    JOB_FAILED = 4  # the job ended, and not as succeeded


EXIT_CODES = (
    "Exit codes: 0 ok; 1 refused or failed; 2 usage; 3 cannot connect; 4 the job ended and did not succeed."
)


class Stop(Exception):
    """Ends the command with `code`, saying `message` on stderr."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
