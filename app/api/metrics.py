"""`GET /metrics`: the service in Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.service import ServiceDep
from app.observe.metrics import CONTENT_TYPE

router = APIRouter(tags=["service"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(service: ServiceDep) -> Response:
    """Requests, queue, jobs, slots, runs and guidelines for a Prometheus to scrape; see README, "Operating"."""
    return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE})
