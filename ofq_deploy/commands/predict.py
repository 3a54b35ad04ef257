"""What `predict` does: the likeliest labels of images, by ONNX Runtime alone."""

from ofq_deploy.commands.requests import PredictRequest
from ofq_deploy.results.models import Likely, Prediction, PredictResult
from ofq_deploy.results.record import stamped
from ofq_deploy.runs.subject import model_file


def predict(request: PredictRequest) -> PredictResult:
    """See ofq_deploy.api.predict."""
    import numpy as np

    from ofq_deploy.data.images import load_image
    from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits

    file = model_file(request.model)
    described = file.described
    loaded = np.stack([load_image(image, described.preprocessing) for image in request.images])
    logits = run_logits(open_session(file.path), loaded).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = powers / powers.sum(-1, keepdims=True)
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :5]
    predictions = [
        Prediction(
            image=str(image),
            top5=[Likely(label=described.labels[k], probability=round(float(row[k]), 6)) for k in order],
        )
        for image, row, order in zip(request.images, probabilities, best, strict=True)
    ]
    return stamped(PredictResult, request.line(), {"predictions": predictions})
