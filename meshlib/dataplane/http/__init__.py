"""Connections to endpoints, and the pools that keep them.

What is decided (`codec`, `pool`, `limits`) knows no socket; `blocking` and `asynchronous` are thin hands.
The rest of the data plane sees `send(attempt, body, timeouts)`, which gives a response or a `Failed`.
"""
