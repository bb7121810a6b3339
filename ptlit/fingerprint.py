"""Is this the LM that the prompt was trained on? Before another one it answers nonsense, fluently."""

import hashlib

from torch import nn

SAMPLES = 256  # values read of each tensor: quick for any size, and any training would change them


def fingerprint(model: nn.Module, part: str = "") -> str:
    """Of names, shapes and sampled values of the floating-point weights, of those that have `part` in their
    names; the same on every device.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(each for each in model.named_parameters() if part in each[0]):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if type(weight) is nn.Parameter and weight.is_floating_point():  # not those packed by quantising
            sample = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLES)]
            digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
