"""Data sets of images, read without pickle and without the network: `delta.data.load.load_dataset`."""
