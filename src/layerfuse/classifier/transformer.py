"""LayerFusionTransformer: fused layers as features beside other columns."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from layerfuse.classifier.classifier import LayerFusionClassifier
from layerfuse.labels import Column


class LayerFusionTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to fused features, for a `ColumnTransformer` beside columns that are not text.

    Blocks are selected by the labels, as `LayerFusionClassifier` does it, words left out; what
    follows learns from the fused features. Cross-validate the whole pipeline, so that held-out
    labels select nothing.

    Parameters
    ----------
    classifier : LayerFusionClassifier, optional
        Whose encoders, selection and fusion are used; by default one that concatenates.

    Attributes
    ----------
    classifier_ : LayerFusionClassifier
        Fitted.

    Examples
    --------
    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.preprocessing import OneHotEncoder, StandardScaler
    >>> from layerfuse import LayerFusionTransformer
    >>> columns = make_column_transformer(
    ...     (LayerFusionTransformer(), "body"),  # one column, so not in a list
    ...     (OneHotEncoder(handle_unknown="ignore"), ["channel"]),
    ...     (StandardScaler(), ["amount"]),
    ... )
    """

    classifier_: LayerFusionClassifier

    def __init__(self, classifier: LayerFusionClassifier | None = None) -> None:
        self.classifier = classifier

    def fit(self, X: Column, y: Column) -> Self:
        """Select and fuse blocks.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.
        y : array-like of shape (n,)
            Labels.

        Returns
        -------
        LayerFusionTransformer
            Itself.
        """
        default = LayerFusionClassifier(fusion="concat", head="ridge")
        used = default if self.classifier is None else clone(self.classifier)
        # The lexical block has learned the labels of training rows, which what follows is to learn;
        # other columns have transformers of their own.
        self.classifier_ = used.set_params(lexical=False, columns=()).fit(X, y)
        return self

    def transform(self, X: Column) -> npt.NDArray[np.float32]:
        """Fused features.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.

        Returns
        -------
        ndarray of shape (n, n_features)
        """
        check_is_fitted(self)
        return self.classifier_.features(X)

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[np.object_]:
        """Names of the features.

        Parameters
        ----------
        input_features : object
            Not used.

        Returns
        -------
        ndarray of str of shape (n_features,)
            Such as ``"minilm:6:mean:0"`` where blocks are concatenated, else ``"tensor:0"``.
        """
        check_is_fitted(self)
        fused = self.classifier_.model_
        if fused.model.fusion.name == "concat":
            pairs = zip(fused.blocks, fused.axes, strict=True)
            names = [f"{block}:{place}" for block, axes in pairs for place in range(axes.rank)]
        else:
            width = fused.model.head.shape[0]
            names = [f"{fused.model.fusion.name}:{place}" for place in range(width)]
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        return tags
