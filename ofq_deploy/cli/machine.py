"""The command about this machine: doctor."""

from ofq_deploy.cli import texts
from ofq_deploy.cli.common import AsJson, Force, JsonFile, Quiet, finish, refuse


def doctor(
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show versions, CPU features and which backends can run here.

    Example: ofq-deploy doctor --json
    """
    from ofq_deploy.commands.doctor import examine

    refuse(output, force)
    result = examine()
    finish(result, texts.doctor_text(result), as_json, output, force)
