"""The cloud's half of training: stored releases, jobs in processes of their own, and the service over them."""
