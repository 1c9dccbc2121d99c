"""Delta: split private inference between a private client and an untrusted cloud.

Source: Niu, Ali, Prakash, Avestimehr, "All Rivers Run to the Sea: Private Learning with Asymmetric
Flows", CVPR 2024 (arXiv 2312.05264).
"""
