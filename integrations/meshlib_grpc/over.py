"""A call that has ended: what Done and Status, which are such calls, answer alike."""

from typing import Any


class Over:
    """It is no more than what it came to."""

    def is_active(self) -> bool:
        """It has ended."""
        return False

    def time_remaining(self) -> float | None:
        """There is none."""
        return None

    def add_callback(self, callback: Any) -> bool:
        """Too late."""
        return False

    def cancel(self) -> bool:
        """Too late."""
        return False

    def cancelled(self) -> bool:
        """It was not."""
        return False

    def running(self) -> bool:
        """It has ended."""
        return False

    def done(self) -> bool:
        """It has."""
        return True

    def add_done_callback(self, fn: Any) -> None:
        """Calls `fn` at once."""
        fn(self)
