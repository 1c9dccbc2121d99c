"""The simulated TEE: its cost model; measurement, evidence and sealing are to come. It imports nothing of ours."""
