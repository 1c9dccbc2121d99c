"""The privacy audit: tests that can falsify a claimed μ, run from image to packet. Passing one proves nothing."""
