"""What the losses on camera proxies share: checks of their input, and whom they average over."""

from __future__ import annotations

from torch import Tensor

AVERAGES = ("camera", "image")


def check_sizes(
    loss: str,
    query: Tensor,
    labels: Tensor,
    camids: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    proxy_camids: Tensor,
) -> None:
    """Raise ValueError unless queries and proxies fit together and to what is known of them."""
    fits = len(query) == len(labels) == len(camids) and len(proxies) == len(proxy_labels) == len(proxy_camids)
    if not fits or query.shape[1] != proxies.shape[1]:
        raise ValueError(
            f"{loss}: query {tuple(query.shape)}, labels {tuple(labels.shape)}, camids "
            f"{tuple(camids.shape)}, proxies {tuple(proxies.shape)}, proxy_labels {tuple(proxy_labels.shape)} and "
            f"proxy_camids {tuple(proxy_camids.shape)} do not fit together"
        )


def check_proxies(loss: str, own: Tensor, labels: Tensor, camids: Tensor) -> None:
    """Raise ValueError for an image without proxy, other than those left out (camera -1).

    On the CPU only, for an accelerator would have to be waited for.

    Args:
        loss: its name, for the message.
        own: (N, P) bool, the proxies that are the image's own.
        labels: (N,) int64.
        camids: (N,) int64.
    """
    if own.device.type != "cpu":
        return
    lacking = ~own.any(dim=1) & (camids >= 0)
    if lacking.any():
        raise ValueError(f"{loss}: no proxy for the pseudo labels {labels[lacking].unique().tolist()}")


def check_choice(group: str, key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, with the key, unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"MODEL.LOSSES.{group}.{key} is {value!r}; choose one of {', '.join(choices)}")


def images_averaged_over(camids: Tensor, batch_camids: Tensor, average: str) -> Tensor:
    """(N,) number of images of the whole batch among which each query's loss is averaged.

    Args:
        camids: (N,) int64 cameras, -1 for an image that is left out.
        batch_camids: (B,) int64, of the whole batch.
        average: "camera": those of the image's camera; "image": all that are not left out.
    """
    if average == "image":
        return (batch_camids >= 0).sum().clamp(min=1).expand_as(camids)
    return (camids[:, None] == batch_camids[None, :]).sum(dim=1)
