"""The certificate authority of the mesh: its keys on disk, what it signs, and how its root is replaced."""
