"""The cloud as a process: it hosts the cloud halves of bundles, and knows no method by name."""
