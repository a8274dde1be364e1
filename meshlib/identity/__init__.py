"""Who is who: SPIFFE identities, keys, certificate chains, and when they are renewed. Pure: no I/O, no clock."""
