"""How often: a bucket of tokens for each key, in bounded memory."""

from collections import OrderedDict


class Allowance:
    """Each key may do `burst` things at once and `per_second` in the long run. Time is an argument.

    At most `most` keys are remembered; the one unused for longest begins anew.
    """

    def __init__(self, burst: float, per_second: float, most: int = 10_000) -> None:
        self._burst = burst
        self._per_second = per_second
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> bool:
        """Whether `key` may do one more at `now`, in seconds."""
        left, since = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - since) * self._per_second)
        allowed = left >= 1.0
        self._left[key] = (left - 1.0 if allowed else left, now)
        while len(self._left) > self._most:
            self._left.popitem(last=False)
        return allowed
