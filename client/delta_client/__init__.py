"""The private side as a process: a session with a cloud, and predictions that survive its absence."""

from delta_client.catalog import CatalogEntry, fetch_manifest, list_models
from delta_client.client import Client
from delta_client.token import TenantToken
from delta_client.training import GrpcTrainingCloud
from delta_client.transport import GrpcTransport

__all__ = [
    "CatalogEntry",
    "Client",
    "GrpcTrainingCloud",
    "GrpcTransport",
    "TenantToken",
    "fetch_manifest",
    "list_models",
]
