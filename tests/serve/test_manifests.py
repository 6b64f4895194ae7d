"""The files of the examples are what Ray and Kubernetes take, as far as that can be told without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from calm_graph.serve.settings import ServeSettings

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which Ray Serve brings")
EXAMPLES = Path(__file__).parents[2] / "examples" / "serve"
BUILDER = "calm_graph.serve.ray_app:build_app"


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "rayservice.yaml").read_text())
    return found


def config(name: str) -> dict[str, Any]:
    text = (EXAMPLES / name).read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return yaml.safe_load(found["spec"]["serveConfigV2"]) if name == "rayservice.yaml" else found


@pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])
def test_serve_takes_the_configuration(name: str) -> None:
    schema = ServeDeploySchema.model_validate(config(name))
    (application,) = schema.applications
    assert application.import_path == BUILDER
    settings = ServeSettings.parse(application.args, where=name)
    assert settings.checkpoints and (settings.num_replicas is None) == (settings.autoscaling is not None)


def test_a_misspelt_setting_of_the_configuration_is_refused() -> None:
    broken = config("rayservice.yaml")
    broken["applications"][0]["import_pat"] = broken["applications"][0].pop("import_path")
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate(broken)


def test_the_manifests_parts_fit_together() -> None:
    found = manifest()
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayService")
    cluster = found["spec"]["rayClusterConfig"]
    settings = ServeSettings.parse(config("rayservice.yaml")["applications"][0]["args"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants texts"
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        (container,) = spec["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) == volumes
        # The builder checks the checkpoints on the head, and the engines read them.
        for checkpoint in settings.checkpoints:
            assert any(checkpoint.startswith(f"{path}/") for path in mounted)
        assert all(isinstance(each["value"], str) for each in container["env"])
    (worker,) = cluster["workerGroupSpecs"]
    limits = worker["template"]["spec"]["containers"][0]["resources"]
    assert float(limits["limits"]["nvidia.com/gpu"]) >= settings.num_gpus
    assert float(limits["requests"]["cpu"]) >= settings.num_cpus
    assert settings.autoscaling is not None
    assert worker["maxReplicas"] >= settings.autoscaling["max_replicas"]
    keys = str(settings.http.api_keys_file)
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(keys.startswith(f"{mount['mountPath']}/") for mount in head)


def test_the_manifest_names_the_ray_that_is_tested() -> None:
    constraints = (EXAMPLES.parents[1] / "constraints.txt").read_text().splitlines()
    (ray,) = [line for line in constraints if line.startswith("ray==")]
    assert manifest()["spec"]["rayClusterConfig"]["rayVersion"] == ray.removeprefix("ray==")
