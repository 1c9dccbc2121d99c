"""Methods: one folder each, a private half and a cloud half under one contract."""
