"""How well digits are recognized in imputed sequences; without JAX, for separate processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score


def auroc(bits: np.ndarray, labels: np.ndarray) -> float:
    """The area under the ROC curve, one digit against the others, averaged over the digits.

    The classifier is a multinomial logistic regression on all pixels of a sequence, fitted to the
    first half of the sequences and evaluated on the second, as in Fortuin et al., with
    scikit-learn's default tolerance.

    Args:
      bits: imputed black-and-white sequences, packed by `np.packbits`, `[N, bytes]`.
      labels: the digits, `[N]`.
    """
    x, half = np.unpackbits(bits, axis=1).astype(np.float32), len(bits) // 2
    classifier = LogisticRegression(max_iter=10_000).fit(x[:half], labels[:half])
    chances = classifier.predict_proba(x[half:])
    return float(roc_auc_score(labels[half:], chances, multi_class="ovr"))
