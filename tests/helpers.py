"""Settings shared by tests: a network that trains in a second or two."""

TINY = {
    "patch_size": 32,
    "fields_um": (60.0, 120.0),
    "width": 32,
    "vit_heads": 2,
    "n_components": 4,
    "epochs": 3,
}
CPU = {"weights": None, "device": "cpu", "progress": False}
