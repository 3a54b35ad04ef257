"""Every error that a user can cause.

OfqError                   one line on stderr, exit code 2
├─ RecipeError             unknown key, wrong value
├─ DataError               a data set or an image that cannot be read
├─ ModelError              an architecture or weights that cannot be quantized
├─ RunError                a run folder that is missing, cut or changed
├─ FrozenFileError         a frozen file with a missing array, a wrong shape or another version
├─ OnnxFileError           an ONNX file that is not ours, or damaged
├─ OutputError             an output that exists, or cannot be written
├─ UnsupportedByTarget     this target or opset cannot hold the model
└─ BackendMissing          a runtime that is not installed, exit code 4

"Differs" and "below the gate" are results (exit code 3), not errors. Programming mistakes stay
ValueError and TypeError.
"""


class OfqError(Exception):
    """One sentence: what was found, where, what is allowed, what to do."""

    exit_code = 2


class RecipeError(OfqError):
    pass


class DataError(OfqError):
    pass


class ModelError(OfqError):
    pass


class RunError(OfqError):
    pass


class FrozenFileError(OfqError):
    pass


class OnnxFileError(OfqError):
    pass


class OutputError(OfqError):
    pass


class UnsupportedByTarget(OfqError):
    pass


class BackendMissing(OfqError):
    exit_code = 4
