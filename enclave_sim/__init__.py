"""The simulated TEE. It will hold measurement, evidence, sealing and a cost model; it imports nothing of ours."""
