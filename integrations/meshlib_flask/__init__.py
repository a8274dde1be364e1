"""A Flask application in the mesh.

    app = Flask(__name__)
    Mesh(app)

Who calls is `flask.g.mesh` (`principal`, `namespace`, `service_account`, `claims`, `attempt`).
"""

from meshlib_flask.extension import Mesh

__all__ = ["Mesh"]
