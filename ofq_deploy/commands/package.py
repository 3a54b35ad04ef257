"""What `package` does: write a folder to serve a model from."""

from dataclasses import replace

import msgspec

from ofq_deploy.commands.requests import PackageRequest
from ofq_deploy.results.models import PackageResult
from ofq_deploy.runs.subject import model_file


def package(request: PackageRequest) -> PackageResult:
    """See ofq_deploy.api.package."""
    from ofq_deploy.serving.package import make_package

    file = model_file(request.model)
    manifest = make_package(
        file,
        request.kind,
        request.output,
        replace(request, model=file.path).line(),
        name=request.name,
        backend=request.backend,
        max_batch=request.max_batch,
        threads=request.threads,
        force=request.force,
    )
    return msgspec.convert(manifest, PackageResult)
