"""What the losses on camera proxies share: checks of their input, and how they average."""

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


def batch_average(losses: Tensor, camids: Tensor, batch_camids: Tensor | None, average: str) -> Tensor:
    """This process's share of the average over the whole batch: the shares add up to it.

    Args:
        losses: (N,) of the queries, 0 for an image that is left out.
        camids: (N,) int64 cameras, -1 for an image that is left out.
        batch_camids: (B,) int64, of the whole batch; None: of these queries.
        average: "camera": the mean per camera, summed over the cameras; "image": the mean of all that are not left out.

    Returns:
        Scalar.
    """
    batch_camids = camids if batch_camids is None else batch_camids
    if average == "image":
        images = (batch_camids >= 0).sum().clamp(min=1).expand_as(camids)
    else:
        images = (camids[:, None] == batch_camids[None, :]).sum(dim=1)
    return (losses / images).sum()
