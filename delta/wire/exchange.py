"""The messages of `Exchange`."""

from delta.v1.exchange_pb2 import ExchangeRequest, ExchangeResponse

__all__ = ["ExchangeRequest", "ExchangeResponse"]
