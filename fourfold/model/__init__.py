"""The network, for one device: no training, no serving, no file formats."""
