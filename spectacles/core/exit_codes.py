"""How a command ends: one sentence for a user's mistake, and the exit code that says which end it was."""

import errno
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from spectacles.core import signals
from spectacles.core.errors import UserError
from spectacles.core.wording import printable

log = logging.getLogger("spectacles")

DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


class OneLine(logging.Formatter):
    """A record is a line, whatever names of files and classes it holds; tracebacks follow below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


@contextmanager
def exit_codes() -> Iterator[None]:
    """A user's mistake or a disk that fails: one sentence, exit 2. Ctrl-C: 130, SIGTERM: 143. Anything else keeps its
    traceback."""
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[screen])
    log.setLevel(logging.INFO)
    # Odd metadata; what matters is accounted for as a converted or rejected row.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        with signals.handled():
            yield
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_FAILURES:
            raise
        print(
            f"error: {printable(str(error.filename))}: {error.strerror}. What was finished before is kept.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("stopped.", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
