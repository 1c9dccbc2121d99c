"""Services of the protocol: names, method paths, typed stubs and descriptors."""

from __future__ import annotations

from delta.v1 import catalog_pb2, exchange_pb2, inference_pb2, training_pb2
from delta.v1.catalog_pb2 import (
    GetManifestRequest,
    GetManifestResponse,
    ListModelsRequest,
    ListModelsResponse,
    ModelInfo,
    ServerInfo,
)
from delta.v1.catalog_pb2_grpc import CatalogServiceStub
from delta.v1.exchange_pb2_grpc import ExchangeServiceStub
from delta.v1.inference_pb2_grpc import InferenceServiceStub
from delta.v1.training_pb2_grpc import TrainingServiceStub

__all__ = [
    "CATALOG_SERVICE",
    "EXCHANGE_SERVICE",
    "INFERENCE_SERVICE",
    "SERVICES",
    "TRAINING_SERVICE",
    "CatalogServiceStub",
    "ExchangeServiceStub",
    "GetManifestRequest",
    "GetManifestResponse",
    "InferenceServiceStub",
    "ListModelsRequest",
    "ListModelsResponse",
    "ModelInfo",
    "ServerInfo",
    "TrainingServiceStub",
    "method_path",
]

CATALOG_SERVICE: str = catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"].full_name
INFERENCE_SERVICE: str = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
EXCHANGE_SERVICE: str = exchange_pb2.DESCRIPTOR.services_by_name["ExchangeService"].full_name
TRAINING_SERVICE: str = training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name
SERVICES = (CATALOG_SERVICE, INFERENCE_SERVICE, EXCHANGE_SERVICE, TRAINING_SERVICE)


def method_path(service: str, method: str) -> str:
    """HTTP/2 path of a method."""
    return f"/{service}/{method}"
