"""Bookinfo: a small book shop in four services, to see the mesh's rules at work.

    browser ──► productpage ──► details
                     └────────► reviews v1 (no stars)
                                reviews v2 (black stars) ──► ratings
                                reviews v3 (red stars)   ──► ratings

Each service is a process of its own (`python -m meshlib_bookinfo reviews --version v2`), joins
the mesh with `meshlib.register` and calls the others by their plain names with
`meshlib.AsyncClient`. Nothing in these modules knows which version is asked: the YAML in `mesh/`
decides.
"""
