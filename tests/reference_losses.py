"""The losses over explicit pairs, in Python floats: slow, and meant to be read beside the formulas."""

import math


def _dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist()))


def _cosine(a, b):
    return _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))


def naive_agnostic(query, labels, centroids, temperature, smoothing):
    total = 0.0
    for q, y in zip(query, labels.tolist()):
        logits = [_dot(q, c) / temperature for c in centroids]
        log_sum = math.log(sum(math.exp(v) for v in logits))
        log_probabilities = [v - log_sum for v in logits]
        uniform = sum(log_probabilities) / len(logits)
        total -= (1 - smoothing) * log_probabilities[y] + smoothing * uniform
    return total / len(query)


def naive_cross_camera(
    query,
    labels,
    camids,
    proxies,
    proxy_labels,
    proxy_camids,
    temperature,
    num_negatives,
    proxy_norm,
    pad,
    positives="all",
    denominator="joint",
    average="camera",
):
    axis = {"dimension": 0, "proxy": 1}[proxy_norm]
    proxies = proxies / proxies.square().sum(dim=axis, keepdim=True).sqrt()
    per_camera = {}
    for q, y, camera in zip(query, labels.tolist(), camids.tolist()):
        length = math.sqrt(_dot(q, q))
        logits = [_dot(q, p) / length / temperature for p in proxies]
        own = [i for i, label in enumerate(proxy_labels.tolist()) if label == y]
        others = sorted((i for i in range(len(logits)) if i not in own), key=lambda i: -logits[i])[:num_negatives]
        if pad:
            others += sorted(own, reverse=True)[: num_negatives - len(others)]
        if positives == "other_cameras":
            own = [i for i in own if proxy_camids[i] != camera]
        terms = []
        for i in own:
            shared = own if denominator == "joint" else [i]
            terms.append(math.log(sum(math.exp(logits[j]) for j in shared + others)) - logits[i])
        per_camera.setdefault(camera, []).append(sum(terms) / len(terms) if terms else 0.0)
    if average == "image":
        return sum(sum(losses) for losses in per_camera.values()) / len(query)
    return sum(sum(losses) / len(losses) for losses in per_camera.values())


def _per_camera(losses, camids, average):
    """The sum over the cameras of the mean of their losses, or the mean of all."""
    if average == "image":
        return sum(losses) / len(losses)
    cameras = {camera: [loss for loss, other in zip(losses, camids) if other == camera] for camera in camids}
    return sum(sum(own) / len(own) for own in cameras.values())


def naive_intra_camera(query, labels, camids, proxies, proxy_labels, proxy_camids, temperature, average="camera"):
    losses = []
    for q, y, camera in zip(query, labels.tolist(), camids.tolist()):
        logits = {
            label: _dot(q, p) / math.sqrt(_dot(q, q)) / temperature
            for p, label, other in zip(proxies, proxy_labels.tolist(), proxy_camids.tolist())
            if other == camera
        }
        losses.append(math.log(sum(math.exp(logit) for logit in logits.values())) - logits[y])
    return _per_camera(losses, camids.tolist(), average)


def naive_online_association(
    query,
    labels,
    camids,
    proxies,
    proxy_labels,
    proxy_camids,
    temperature,
    num_positives,
    num_negatives,
    balance,
    average="camera",
):
    losses = []
    keys = list(zip(proxy_labels.tolist(), proxy_camids.tolist()))
    for q, y, camera in zip(query, labels.tolist(), camids.tolist()):
        own = proxies[keys.index((y, camera))]
        cosines = [_dot(q, p) / math.sqrt(_dot(q, q)) for p in proxies]
        ranks = [balance * s + (1 - balance) * _dot(own, p) for s, p in zip(cosines, proxies)]
        best = {}
        for i, (_, other) in enumerate(keys):
            if other not in best or ranks[i] > ranks[best[other]]:
                best[other] = i
        positives = sorted(best.values(), key=lambda i: -ranks[i])[:num_positives]
        others = [i for i in range(len(ranks)) if i not in positives]
        negatives = sorted(others, key=lambda i: -ranks[i])[:num_negatives]
        logits = [s / temperature for s in cosines]
        partition = math.log(sum(math.exp(logits[i]) for i in positives + negatives))
        losses.append(partition - sum(logits[i] for i in positives) / len(positives))
    return _per_camera(losses, camids.tolist(), average)


def naive_hard_instance(query, keys, labels, temperature):
    total = 0.0
    for q, y in zip(query, labels.tolist()):
        cosines = [_cosine(q, k) for k in keys]
        positive = min(c for c, label in zip(cosines, labels.tolist()) if label == y)
        negatives = [c for c, label in zip(cosines, labels.tolist()) if label != y]
        denominator = sum(math.exp(c / temperature) for c in [positive, *negatives])
        total -= math.log(math.exp(positive / temperature) / denominator)
    return total / len(query)


def naive_soft_instance(query, keys, weak, temperature):
    def softmax(values):
        exponentials = [math.exp(v / temperature) for v in values]
        return [e / sum(exponentials) for e in exponentials]

    total = 0.0
    for q, w in zip(query, weak):
        target = softmax([_cosine(w, other) for other in weak])
        found = softmax([_cosine(q, k) for k in keys])
        total += sum(p * math.log(p / f) for p, f in zip(target, found))
    return total / len(query)
