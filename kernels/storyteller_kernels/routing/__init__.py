"""From token vectors to the experts that will process them."""

from storyteller_kernels.routing.reference import Routing, route

__all__ = ["Routing", "route"]
