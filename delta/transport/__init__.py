"""How the private side reaches a cloud half: the contract, in this process, and over a simulated link."""
