"""Which rule: virtual hosts by authority, routes in order, the first match wins."""
