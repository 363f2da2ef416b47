"""The published curves, for comparison: Peng, Lee and Watanabe, "I3D", ICASSP 2023 (arXiv 2303.07624v1).

Figs. 2 to 4 were digitised from the vector graphics of the paper; every WER there lies on a grid of 0.1, depths are
read to 0.1 layers. Table 1 is printed. Depth is (executed MHA + executed FFN blocks) / 2 of 36 layers, averaged over
utterances; WER is in percent.
"""

from typing import Literal

from i3d_jax.analysis.tradeoff import Curve, CurvePoint

NUM_LAYERS = 36
Figure = Literal[
    "fig2-clean", "fig2-other", "fig3-clean", "fig3-other", "fig4", "table1-dev-clean", "table1-test-clean"
]
TITLES: dict[Figure, str] = {
    "fig2-clean": "Fig. 2: CTC, LibriSpeech 100 h, test-clean",
    "fig2-other": "Fig. 2: CTC, LibriSpeech 100 h, test-other",
    "fig3-clean": "Fig. 3: InterCTC, LibriSpeech 100 h, test-clean",
    "fig3-other": "Fig. 3: InterCTC, LibriSpeech 100 h, test-other",
    "fig4": "Fig. 4: CTC, Tedlium2, test",
    "table1-dev-clean": "Table 1: AED, LibriSpeech 100 h, dev-clean",
    "table1-test-clean": "Table 1: AED, LibriSpeech 100 h, test-clean",
}

_Points = tuple[tuple[float, float], ...]
_DENSE, _PRUNED = "Transformer", "pruned layer by layer"
_LOCAL, _GLOBAL = "I3D-LocalGP", "I3D-GlobalGP"


def _pruned(*wers: float) -> _Points:
    return tuple((float(layers), wer) for layers, wer in enumerate(wers, start=18))


# Of the curves over beta the paper's figure shows whole lines; their two ends were read.
_CURVES: dict[Figure, dict[str, _Points]] = {
    "fig2-clean": {
        _DENSE: ((18, 13.1), (20, 13.1), (27, 12.5), (36, 11.7)),
        _PRUNED: _pruned(16.5, 15.6, 15.2, 14.6, 14.1, 13.7, 13.3, 13.0, 12.8, 12.5, 12.5, 12.3, 12.2, 12.1, 12.0, 12.0,
                         11.9, 11.9, 11.9),
        _LOCAL: ((18.1, 13.5), (18.9, 13.0), (19.6, 12.8), (20.2, 12.6), (20.5, 12.8), (22.1, 12.2), (23.8, 12.1),
                 (30.6, 11.7)),
        _GLOBAL: ((19.4, 13.2), (20.0, 12.6), (20.5, 12.3), (21.8, 12.2), (25.0, 11.8), (32.0, 11.5)),
        "I3D-GlobalGP, beta, model 1": ((30.0, 11.6), (34.4, 11.4)),
        "I3D-GlobalGP, beta, model 2": ((24.1, 12.0), (28.1, 11.6)),
        "I3D-GlobalGP, beta, model 3": ((21.2, 12.4), (24.0, 11.9)),
    },
    "fig2-other": {
        _DENSE: ((18, 28.7), (20, 28.3), (27, 27.9), (36, 26.7)),
        _PRUNED: _pruned(34.3, 33.6, 32.6, 31.7, 31.0, 30.2, 29.9, 29.5, 29.1, 28.6, 28.2, 27.8, 27.5, 27.4, 27.2, 27.0,
                         27.0, 26.9, 26.8),
        _LOCAL: ((18.4, 30.9), (20.0, 29.1), (20.9, 28.8), (22.3, 27.8), (23.9, 27.4), (30.6, 26.2)),
        _GLOBAL: ((19.5, 31.6), (20.1, 28.6), (20.6, 28.1), (22.1, 27.8), (24.9, 27.4), (32.2, 26.3)),
    },
    "fig3-clean": {
        _DENSE: ((18, 12.2), (27, 11.7), (36, 11.6)),
        _PRUNED: ((24, 11.7),),
        _GLOBAL: ((20.4, 12.3), (21.5, 11.7), (23.3, 11.5), (24.0, 11.5)),
    },
    "fig3-other": {
        _DENSE: ((18, 27.6), (27, 26.6), (36, 26.3)),
        _PRUNED: ((24, 26.3),),
        _GLOBAL: ((20.4, 27.2), (22.1, 26.2), (23.2, 25.7), (24.1, 25.9)),
    },
    "fig4": {
        _DENSE: ((18, 12.7), (27, 11.4), (36, 10.9)),
        _LOCAL: ((20.2, 12.2), (22.0, 11.4), (29.4, 10.6)),
        _GLOBAL: ((22.9, 11.2), (25.3, 10.8), (32.9, 10.5)),
    },
    "table1-dev-clean": {
        _DENSE: ((27, 8.2), (36, 7.8)),
        _LOCAL: ((27.3, 7.9),),
        _GLOBAL: ((27.2, 7.8),),
    },
    "table1-test-clean": {
        _DENSE: ((27, 8.5), (36, 8.0)),
        _LOCAL: ((27.1, 8.3),),
        _GLOBAL: ((27.1, 8.2),),
    },
}  # fmt: skip

_LABELS = tuple(dict.fromkeys(label for curves in _CURVES.values() for label in curves))

OPEN_GATES: dict[str, dict[str, tuple[int, int, int]]] = {
    "Fig. 5 (CTC)": {"mha": (1, 7, 12), "ffn": (3, 6, 12)},
    "Fig. 6 (InterCTC)": {"mha": (10, 8, 0), "ffn": (12, 11, 0)},
}
"""Gates of I3D-GlobalGP with mean p(execute) > 0.5 in layers 1-12, 13-24 and 25-36."""


def paper_curves(figure: Figure) -> tuple[Curve, ...]:
    """The curves of a figure or table of the paper.

    Raises:
      ValueError: there is no such figure.
    """
    if figure not in _CURVES:
        raise ValueError(f"figure {figure!r}: expected one of {', '.join(_CURVES)}")
    return tuple(
        Curve(label, tuple(CurvePoint(float(layers), wer) for layers, wer in points), NUM_LAYERS, _LABELS.index(label))
        for label, points in _CURVES[figure].items()
    )


def paper_reference(figure: Figure) -> float:
    """WER of the paper's 36-layer Transformer there, percent."""
    ((_, wer),) = (point for point in _CURVES[figure][_DENSE] if point[0] == NUM_LAYERS)
    return wer
