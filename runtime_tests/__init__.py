"""Proofs and measurements of exported models in the runtimes that will execute them."""

if __name__ != "ofq_deploy.runtime_tests":
    raise ImportError("import ofq_deploy.runtime_tests, not runtime_tests")
