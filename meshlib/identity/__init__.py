"""Who is who: SPIFFE identities, keys, certificate chains, renewal. Pure: no I/O, no clock."""
