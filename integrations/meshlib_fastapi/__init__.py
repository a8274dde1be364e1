"""A FastAPI or Starlette application in the mesh.

    app = FastAPI()
    install(app)

    @app.get("/")
    def page(caller: Caller) -> str:
        return caller.service_account

Who calls is `request.state.mesh`, too. Middleware that is added after `install` is asked before the mesh is.
"""

from meshlib_fastapi.install import Caller, install

__all__ = ["Caller", "install"]
