"""A Django project that calls another service; nothing in it hands anything on."""

from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from support.told import BACK, told

import meshlib

settings.configure(
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["meshlib_django.MeshMiddleware", "django.middleware.common.CommonMiddleware"],
    ALLOWED_HOSTS=["*"],
)
client = meshlib.Client()
aclient = meshlib.AsyncClient()


def _told(request: Any) -> dict[str, Any]:
    return told(request.mesh, request.headers)


def seen(request: HttpRequest) -> JsonResponse:
    return JsonResponse(_told(request))


def hop(request: HttpRequest) -> JsonResponse:
    return JsonResponse({**_told(request), "next": client.get(BACK).json()})


async def ahop(request: HttpRequest) -> JsonResponse:
    return JsonResponse({**_told(request), "next": (await aclient.get(BACK)).json()})


urlpatterns = [path("seen", seen), path("hop", hop), path("ahop", ahop)]
app = get_wsgi_application()
asgi = get_asgi_application()
