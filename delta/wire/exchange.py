"""The messages of `Exchange`."""

from delta.v1.exchange_pb2 import ExchangeAnswer, ExchangeRequest, ExchangeResponse

__all__ = ["ExchangeAnswer", "ExchangeRequest", "ExchangeResponse"]
