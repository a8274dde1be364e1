"""Connections that an application holds itself: `core.tcp` decides, sockets and streams are made here."""
