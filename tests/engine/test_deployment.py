"""The files by which vLLM is deployed: well-formed, alike, and as the page says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgemma_engine.capacity import Assumptions

ENGINE = Path(__file__).parents[2] / "engine"
COMPOSE = ENGINE / "deployment/compose.yaml"
KUBERNETES = ENGINE / "deployment/kubernetes.yaml"
PAGE = ENGINE / "DEPLOYMENT.md"


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
    assert set(loaded) == {"name", "services", "volumes"}
    found: dict[str, Any] = loaded["services"]["vllm"]
    for volume in found["volumes"]:
        assert volume.partition(":")[0] in loaded["volumes"]
    return found


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    loaded = list(yaml.safe_load_all(KUBERNETES.read_text("utf-8")))
    for one in loaded:
        assert one["apiVersion"]
        assert one["metadata"]["name"]
        assert one["spec"]
    return {one["kind"]: one for one in loaded}


@pytest.fixture(scope="module")
def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (found,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def options(arguments: list[str]) -> dict[str, str]:
    """What is given to `vllm serve`, the model under ""."""
    assert not arguments[0].startswith("-")
    pairs = [argument.partition("=") for argument in arguments[1:]]
    assert all(name.startswith("--") and value for name, _, value in pairs)
    return {"": arguments[0], **{name: value for name, _, value in pairs}}


def test_both_start_the_same_server(service: dict[str, Any], container: dict[str, Any]) -> None:
    """One image, one model, one set of options."""
    assert service["image"] == container["image"]
    assert service["entrypoint"] == container["command"] == ["vllm", "serve"]
    assert service["command"] == container["args"]


def test_model_and_port_agree(
    service: dict[str, Any], container: dict[str, Any], objects: dict[str, dict[str, Any]]
) -> None:
    """What is served is what the page tells to fetch and to ask for, at the port that is open."""
    given = options(service["command"])
    page = PAGE.read_text("utf-8")
    assert given["--served-model-name"] == given[""]
    assert f"hf download {given['']} " in page
    assert f'"dgemma.model": "~/models/{given[""].rpartition("/")[2]}"' in page
    port = given["--port"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/health" in service["healthcheck"]["test"]
    assert f"http://127.0.0.1:{port}/health" in page
    (named,) = container["ports"]
    assert str(named["containerPort"]) == port
    (exposed,) = objects["Service"]["spec"]["ports"]
    assert str(exposed["port"]) == port
    assert exposed["targetPort"] == named["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": named["name"]}


def test_the_version_paints_canvases(service: dict[str, Any]) -> None:
    """In-painting came with 0.33."""
    found = re.fullmatch(r"vllm/vllm-openai:v(\d+)\.(\d+)\.(\d+)", service["image"])
    assert found is not None
    assert tuple(map(int, found.groups())) >= (0, 33, 0)


def test_it_is_sized_as_the_page_says(
    service: dict[str, Any], objects: dict[str, dict[str, Any]]
) -> None:
    """Canvases side by side, and replicas for 100 developers, are those of the calculation."""
    assumptions = Assumptions()
    assert int(options(service["command"])["--max-num-seqs"]) == assumptions.device.batch
    assert objects["Deployment"]["spec"]["replicas"] == assumptions.plan(100).gpus


def test_parts_of_the_manifest_find_each_other(
    objects: dict[str, dict[str, Any]], container: dict[str, Any]
) -> None:
    """Labels, volumes, the claim and the secret."""
    assert set(objects) == {
        "Deployment",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
    }
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    volumes = {one["name"]: one for one in deployment["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (secret,) = (
        one["valueFrom"]["secretKeyRef"]
        for one in container["env"]
        if one["name"] == "VLLM_API_KEY"
    )
    made = f"secret generic {secret['name']} --from-literal={secret['key']}="
    assert made in KUBERNETES.read_text("utf-8")
    assert made in PAGE.read_text("utf-8")


def test_no_key_is_in_the_files(service: dict[str, Any]) -> None:
    """It comes from the environment, and without one nothing starts."""
    assert service["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")
    for path in (COMPOSE, KUBERNETES, PAGE):
        assert not re.search(r"\b(hf_|sk-)\w{8}|\b[0-9a-f]{32}\b", path.read_text("utf-8"))


def test_options_are_those_of_vllm(service: dict[str, Any]) -> None:
    """Each option is one of `vllm serve`, where its wheel is installed; nothing of it is run."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    package = Path(found.origin).parent
    known = (package / "engine/arg_utils.py").read_text("utf-8")
    server = "".join(
        path.read_text("utf-8") for path in (package / "entrypoints").rglob("*cli_args.py")
    )
    for name in options(service["command"]):
        field = name.removeprefix("--").replace("-", "_")
        assert not name or f'"{name}"' in known or re.search(rf"\b{field}:", server), name
    assert '"VLLM_API_KEY"' in (package / "envs.py").read_text("utf-8")
