"""Whether the times of a rotation are long enough for those who have to follow it.

Who follows: workloads of meshlib hear of a new root over their stream and renew within seconds;
gRPC's and Envoy's own clients renew at half the life of what they hold; whoever is away meanwhile comes back
with what it knew.
"""

SAFE_OVERLAP_S = 3600.0
"""For restarts, and for files of roots that somebody has to replace."""
SAFE_KEEP_S = 24 * 3600.0
"""The life of a certificate, unless a workload asks for more."""
_OVERLAP = (
    "who is not connected until the new root issues does not know it, and needs the new "
    "MESHLIB_CA_FINGERPRINT, or roots.pem, to come back. Safe is 1h, for restarts, or as long as it takes to "
    "replace files of roots; 24h is the default."
)
_KEEP = (
    "certificates below the old root are refused after that. Workloads of meshlib renew within seconds of "
    "hearing of a new root, gRPC's own clients and Envoys at half the life of theirs; who is away needs a "
    "token again. Safe is 25h if no workload asks for more than the default life of 24h, else the longest "
    "life in use; 2160h is the default, and the longest there is."
)


def hasty(overlap_s: float, keep_s: float) -> list[str]:
    """What is too short, what that does, and what would do; empty: nothing."""
    found = []
    if overlap_s < SAFE_OVERLAP_S:
        found.append(f"--overlap {_shown(overlap_s)}: {_OVERLAP}")
    if keep_s < SAFE_KEEP_S:
        found.append(f"--keep {_shown(keep_s)}: {_KEEP}")
    return found


def _shown(seconds: float) -> str:
    """`5s`, `10m`, `1.5h`."""
    for unit, length in (("h", 3600.0), ("m", 60.0)):
        if seconds >= length:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"
