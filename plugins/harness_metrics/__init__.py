"""The bundled metrics: F1, precision, recall, average precision, AUROC for detection; token F1, IoU, average precision and the pointing
game for masks and maps; insertion and deletion for what was explained."""

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_metrics() -> Iterable[Entry]:
    """Five for detection, four for localization, one each for the two curves of an explained sample."""
    return [
        Entry("f1", "harness_metrics.counted:F1", "2TP / (2TP + FP + FN) over samples"),
        Entry("precision", "harness_metrics.counted:Precision", "TP / (TP + FP) over samples"),
        Entry("recall", "harness_metrics.counted:Recall", "TP / (TP + FN) over samples"),
        Entry(
            "average_precision",
            "harness_metrics.ranked:AveragePrecision",
            "area under the precision-recall steps, over samples",
        ),
        Entry("auroc", "harness_metrics.ranked:Auroc", "area under the ROC curve, over samples"),
        Entry("token_f1", "harness_metrics.counted:TokenF1", "2TP / (2TP + FP + FN) over the annotated tokens of all samples"),
        Entry("token_iou", "harness_metrics.counted:TokenIou", "TP / (TP + FP + FN) over the annotated tokens of all samples"),
        Entry(
            "token_average_precision", "harness_metrics.ranked:TokenAveragePrecision", "average precision over annotated tokens"
        ),
        Entry(
            "pointing_game",
            "harness_metrics.explained:PointingGame",
            "share of samples whose strongest token is in the concept",
        ),
        Entry(
            "insertion_auc", "harness_metrics.explained:InsertionAuc", "area under f_c as tokens are inserted, strongest first"
        ),
        Entry("deletion_auc", "harness_metrics.explained:DeletionAuc", "area under f_c as tokens are deleted, strongest first"),
    ]
