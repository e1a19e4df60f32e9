"""Clients of a server: kerasvae's own, Triton, TF Serving; over HTTP or gRPC; one at a time or many.

A call is sent again where no connection could be made, or the server said that it is busy or going (HTTP 429 and 503,
gRPC RESOURCE_EXHAUSTED and UNAVAILABLE). All attempts together end by the deadline.
"""

from kerasvae_serving.client.calls import Encoded
from kerasvae_serving.client.clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Encoded"]
