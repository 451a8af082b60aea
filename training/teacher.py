"""A trained network that tells a smaller one what to answer, softly, beside the truth.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531. Both see the
same places, warped alike (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022,
arXiv:2106.05237), the teacher as the picture was, the student recoloured, blurred and so on: it is to answer then what
is right without (Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020,
arXiv:1911.04252).
"""

import torch
from lightning_fabric import Fabric
from torch import Tensor

from model.checkpoint import Checkpoint, ModelConfig
from training.errors import RunError


class Teacher:
    """Answers for the student's samples, never changed itself.

    Args:
        checkpoint: the teacher's; any width and layout.
        config: the student's.
        fabric: says where it runs and how precisely.

    Raises:
        RunError: it sees images otherwise than the student does, or lacks one of its outputs.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, fabric: Fabric) -> None:
        seen = [(each.architecture.n_channels, each.normalisation) for each in (checkpoint.config, config)]
        if seen[0] != seen[1]:
            raise RunError(
                f"the teacher sees {seen[0][0]} channels, normalised as {seen[0][1]}; "
                f"the network to train {seen[1][0]}, as {seen[1][1]}"
            )
        has, needed = checkpoint.config.outputs, config.outputs
        if checkpoint.config.activation != config.activation or set(needed) - set(has):
            raise RunError(
                f"the teacher says {', '.join(has)} as {checkpoint.config.activation}; "
                f"the network to train is to say {', '.join(needed)} as {config.activation}"
            )
        self._order = [has.index(name) for name in needed]
        network = checkpoint.build().to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network.requires_grad_(False)
        self._fabric = fabric

    @torch.no_grad()
    def soften(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        """Targets between the truth and what the teacher says.

        Args:
            images: (N, C, H, W), what the student sees, but plain.
            targets: (N, K, H, W) in [0, 1], the truth.
            share: in [0, 1], of the teacher. With cross-entropy, which is linear in the targets, that is its loss's
                share too.

        Returns:
            (N, K, H, W) float32 in [0, 1].
        """
        with self._fabric.autocast():
            logits = self._network(images.contiguous(memory_format=torch.channels_last))
        return torch.lerp(targets, torch.sigmoid(logits[:, self._order].float()), share)
