"""The clouds: one protocol (`base`), one package for each way of buying machines."""
