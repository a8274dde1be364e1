"""Connections to endpoints, and the pools that keep them."""
