"""The hands in the user's process: sockets, threads, clocks."""
