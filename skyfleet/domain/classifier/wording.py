"""The words a person reads: what happened, where, and what to try, best first."""

from __future__ import annotations

from skyfleet.domain.classifier.facts import Facts
from skyfleet.domain.classifier.verdict import SINGLE_POOL, WRAPPING_CLOUDS, Topic
from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.offers import OWN_CLUSTERS

_NAMES = {
    "aws": "AWS",
    "gcp": "Google Cloud",
    "azure": "Azure",
    "lambda": "Lambda",
    "runpod": "RunPod",
    "kubernetes": "Kubernetes",
    "oci": "Oracle Cloud",
    "vast": "Vast.ai",
    "nebius": "Nebius",
    "fluidstack": "FluidStack",
    "paperspace": "Paperspace",
    "cudo": "Cudo",
    "ibm": "IBM Cloud",
    "do": "DigitalOcean",
    "vsphere": "vSphere",
    "hyperbolic": "Hyperbolic",
    "primeintellect": "Prime Intellect",
    "seeweb": "Seeweb",
    "shadeform": "Shadeform",
    "slurm": "Slurm",
    "scp": "Samsung Cloud Platform",
    "ssh": "the SSH node pool",
    "skypilot": "SkyPilot",
    "sky": "SkyPilot",
    "local": "the local cloud",
    "sandbox": "the local cloud",
    "": "the cloud",
}

#: How to mend credentials, per cloud.
_LOGIN = {
    "aws": "Run `aws sts get-caller-identity` to see who you are; renew with `aws sso login` or `aws configure`.",
    "gcp": "Run `gcloud auth login` and `gcloud auth application-default login`, "
    "and check the project with `gcloud config get-value project`.",
    "azure": "Run `az login`, then `az account show` to check the subscription.",
    "lambda": "Make a new API key in the Lambda console and put it into ~/.lambda_cloud/lambda_keys.",
    "runpod": "Make a new API key in the RunPod console and run `runpod config`.",
    "kubernetes": "Run `kubectl auth can-i create pods` in the same context, and renew the kubeconfig.",
    "oci": "Check ~/.oci/config with `oci iam region list`, and the policies of your group in the compartment.",
    "vast": "Put a new API key into ~/.config/vastai/vast_api_key with `vastai set api-key KEY`.",
    "nebius": "Renew the access token or service account credentials in ~/.nebius with `nebius iam get-access-token`.",
    "ibm": "Make a new API key with `ibmcloud iam api-key-create` and put it into ~/.ibm/credentials.yaml.",
    "do": "Make a new token in the DigitalOcean console and run `doctl auth init`.",
    "slurm": "Check account and partition with `sacctmgr show assoc user=$USER`, MUNGE with `munge -n | unmunge`.",
    "ssh": "Check the key and the user name with `ssh -i KEY USER@HOST true`.",
}

#: Where a quota is raised, per cloud.
_QUOTA_PAGE = {
    "aws": "Ask for more in the Service Quotas console (Amazon EC2) of that region.",
    "gcp": "Ask for more under IAM & Admin → Quotas of the project.",
    "azure": "Ask for more under Subscriptions → Usage + quotas.",
    "oci": "Ask for more under Governance → Limits, Quotas and Usage.",
    "lambda": "Ask Lambda's support for a higher quota.",
    "kubernetes": "Ask the cluster's administrator (`kubectl describe resourcequota`, Kueue's ClusterQueue), "
    "or wait for other work to end.",
    "slurm": "See your limits with `sacctmgr show qos` and `sacctmgr show assoc`, or wait for your other jobs.",
}

_WAIT = "Wait and try again: capacity changes by the minute."
_OTHER_REGION = "Allow another region."
_OTHER_ZONE = "Allow another zone or region."
_OTHER_CLOUD = "Allow another cloud."
_OTHER_TYPE = "Choose another GPU or instance type."
_ON_DEMAND = "Use on-demand instead of spot."
_RETRY = "Try again in a few minutes; Skyfleet does so by itself while the launch may go on."


def cloud_name(cloud: str) -> str:
    """The name people know a cloud by."""
    return _NAMES.get(cloud, cloud)


def _where(cloud: str, scope: ErrorScope, facts: Facts) -> str:
    name = cloud_name(cloud)
    if cloud in OWN_CLUSTERS and facts.region:
        part = f"in partition {facts.zone} of" if scope is ErrorScope.ZONE and facts.zone else "on"
        return f"{part} {name} cluster {facts.region}"
    if scope is ErrorScope.ZONE and facts.zone:
        return f"in {name} zone {facts.zone}"
    if scope in (ErrorScope.ZONE, ErrorScope.REGION) and facts.region:
        return f"in {name} {facts.region}"
    if scope is ErrorScope.REGION and facts.zone:
        return f"in the region of {name} zone {facts.zone}"
    if scope is ErrorScope.ZONE:
        return f"in this zone of {name}"
    if scope is ErrorScope.REGION:
        return f"in this region of {name}"
    return f"on {name}" if scope is ErrorScope.CLOUD else "on any cloud that was tried"


def _capacity(cloud: str, scope: ErrorScope, topic: Topic, facts: Facts) -> tuple[str, list[str]]:
    what, where = facts.machine or "this machine type", _where(cloud, scope, facts)
    if topic is Topic.PRICE:
        return (
            f"The spot price bid is below the current spot price of {what} {where}.",
            ["Raise the price ceiling.", _OTHER_ZONE, _ON_DEMAND, _WAIT],
        )
    if topic is Topic.ADDRESSES:
        return (
            f"No free network addresses are left {where}.",
            ["Use a larger subnet, or free addresses in this one.", _OTHER_ZONE],
        )
    if topic is Topic.RESERVATION:
        return (
            f"The reservation has no capacity left for {what} {where}.",
            ["Launch without the reservation.", "Enlarge the reservation.", _OTHER_ZONE],
        )
    if topic is Topic.NOT_OFFERED:
        return f"{what} cannot be had {where}.".capitalize() if not facts.machine else (
            f"{what} cannot be had {where}."
        ), [_OTHER_ZONE if scope is ErrorScope.ZONE else _OTHER_REGION, _OTHER_TYPE]
    if topic is Topic.WRAPPER:
        return (
            f"No machine could be had {where}; most often capacity is missing. The cloud gave no reason here.",
            ["Look at the attempts of this launch for the cloud's own error.", _OTHER_REGION, _OTHER_TYPE, _WAIT],
        )
    other = _OTHER_CLOUD if scope in (ErrorScope.CLOUD, ErrorScope.ACCOUNT) else _OTHER_REGION
    if facts.elsewhere:
        other = f"Launch in {facts.elsewhere}, where the cloud says there is capacity."
    if cloud in OWN_CLUSTERS and facts.region:
        other = "Allow another cluster: its name, as a region."
    elif cloud in SINGLE_POOL:
        other = f"{other} {cloud_name(cloud)} has no free machine that fits the request."
    if facts.spot:
        return f"No spot capacity for {what} {where}.", [other, _ON_DEMAND, _WAIT]
    return f"No capacity for {what} {where}.", [other, _OTHER_TYPE, _WAIT]


def _quota(cloud: str, scope: ErrorScope, facts: Facts) -> tuple[str, list[str]]:
    name = f"“{facts.quota}” " if facts.quota else ""
    figures = [
        f"limit {facts.limit}" if facts.limit else "",
        f"in use {facts.usage}" if facts.usage else "",
        f"asked for {facts.needed}" if facts.needed else "",
    ]
    shown = ", ".join(figure for figure in figures if figure)
    message = f"The quota {name}{_where(cloud, scope, facts)} is used up{f' ({shown})' if shown else ''}."
    elsewhere = _OTHER_REGION if scope in (ErrorScope.ZONE, ErrorScope.REGION) else _OTHER_CLOUD
    return message, [
        _QUOTA_PAGE.get(cloud, f"Ask {cloud_name(cloud)} for a higher limit."),
        elsewhere,
        "Terminate machines that count towards this quota.",
        _ON_DEMAND if facts.spot else _OTHER_TYPE,
    ]


def _auth(cloud: str, scope: ErrorScope, topic: Topic, facts: Facts) -> tuple[str, list[str]]:
    name = cloud_name(cloud)
    login = _LOGIN.get(cloud, f"Renew the credentials for {name} where this worker runs.")
    check = "Then run `sky check` where the worker runs."
    if topic is Topic.BILLING:
        return (
            f"{name} refused: the account is not in good standing (billing, credit or a disabled account).",
            [f"Settle billing in the console of {name}.", _OTHER_CLOUD],
        )
    if topic is Topic.POLICY:
        return (
            f"{name} refused: a policy or missing agreement of your organisation forbids this request.",
            [
                "Ask the administrator for an exemption, or accept the terms the raw text names.",
                _OTHER_REGION,
                _OTHER_CLOUD,
            ],
        )
    if topic is Topic.VERIFICATION:
        return (
            f"{name} has not yet enabled or verified this account {_where(cloud, scope, facts)}.",
            ["Wait for the cloud's confirmation mail, or enable the region in the console.", _OTHER_REGION],
        )
    if topic is Topic.PERMISSION:
        return (
            f"The credentials for {name} are known, but not allowed to do this.",
            ["Ask the administrator for the permission that the raw text names.", login, check],
        )
    if scope is ErrorScope.ACCOUNT:
        return (
            "Access was refused: no usable credentials for SkyPilot or any cloud.",
            [
                "Run `sky check` where the worker runs, and enable a cloud.",
                "Check the token of the SkyPilot API server.",
            ],
        )
    return f"{name} refused the credentials.", [login, check]


def _config(cloud: str, scope: ErrorScope, topic: Topic, facts: Facts) -> tuple[str, list[str]]:
    where = "anywhere" if scope is ErrorScope.ACCOUNT else _where(cloud, scope, facts)
    if topic is Topic.IMAGE:
        return (
            f"The image cannot be used {where}: it does not exist there, or cannot be pulled or run.",
            [
                "Check the image's name and tag, and that this account may read it there.",
                "Leave the image out to use the default.",
            ],
        )
    if topic is Topic.NOT_OFFERED:
        return (
            f"{facts.machine or 'The requested machine type'} does not exist {where}.",
            ["Check the instance type's spelling.", _OTHER_ZONE, _OTHER_TYPE],
        )
    if topic is Topic.UNSUPPORTED:
        return (
            f"{cloud_name(cloud)} does not support what was asked for.",
            ["Leave out the feature that the raw text names.", _OTHER_CLOUD],
        )
    if topic is Topic.POLICY:
        return (
            f"A rule of {cloud_name(cloud)} refused the request as it stands.",
            ["Change the request so that it fits the rule that the raw text names.", _OTHER_CLOUD],
        )
    return (
        f"The request cannot work {where} as it stands.",
        [
            "Correct the setting that the raw text names, then launch again.",
            "See `skyfleet models` and the provider's page for what exists.",
        ],
    )


def _transient(cloud: str, scope: ErrorScope, topic: Topic, facts: Facts) -> tuple[str, list[str]]:
    name = cloud_name(cloud)
    if topic is Topic.RATE_LIMIT:
        return (
            f"{name} is limiting the rate of API calls.",
            [_RETRY, "Launch fewer machines at once.", "Ask for a higher API rate limit if this lasts."],
        )
    if topic is Topic.SSH:
        return (
            "The machine could not be reached by SSH.",
            [_RETRY, "Check that the firewall or security group lets port 22 in, and that the machine has an address."],
        )
    if topic is Topic.CANCELLED:
        return "The request was cancelled before it was done.", ["Launch again if that was not meant."]
    if topic is Topic.NETWORK:
        target = "the SkyPilot API server" if cloud in WRAPPING_CLOUDS else f"the API of {name}"
        return (
            f"No usable answer from {target}.",
            [
                _RETRY,
                "Check the network, DNS and proxy settings where the worker runs.",
                f"Look at the status page of {name}.",
            ],
        )
    return f"{name} had a passing problem of its own.", [_RETRY, f"Look at the status page of {name}.", _OTHER_REGION]


def words(cloud: str, kind: ErrorKind, scope: ErrorScope, topic: Topic, facts: Facts) -> tuple[str, list[str]]:
    """The readable message, and the next steps, best first."""
    if kind is ErrorKind.CAPACITY:
        return _capacity(cloud, scope, topic, facts)
    if kind is ErrorKind.QUOTA:
        return _quota(cloud, scope, facts)
    if kind is ErrorKind.AUTH:
        return _auth(cloud, scope, topic, facts)
    if kind is ErrorKind.CONFIG:
        return _config(cloud, scope, topic, facts)
    if kind is ErrorKind.TRANSIENT:
        return _transient(cloud, scope, topic, facts)
    if kind is ErrorKind.PREEMPTED:
        return (
            f"The machine was taken back by the cloud {_where(cloud, scope, facts)} (preempted).",
            ["Launch again: Skyfleet replaces preempted nodes of a deployment by itself.", _ON_DEMAND, _OTHER_REGION],
        )
    if kind is ErrorKind.TIMEOUT:
        return (
            f"The machine was not ready in time {_where(cloud, scope, facts)}.",
            [_OTHER_ZONE, "Allow a longer deadline for this stage.", _RETRY],
        )
    return (
        f"{cloud_name(cloud)} answered with an error that Skyfleet does not know; the raw text is below.",
        ["Read the raw text.", "Try another zone, region or cloud.", "Report the text, so that Skyfleet learns it."],
    )


#: What is likely behind a stage that took too long; keyed by words of the stage's label (`STAGE_LABEL`).
_LIKELY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("validat", ("The database or the model catalog answers slowly.",)),
    ("choos", ("The cloud's catalog or the capacity memory answers slowly.",)),
    ("request", ("The cloud's API is slow or unreachable.", "The request is queued behind other launches.")),
    (
        "provision",
        (
            "The cloud accepted the request but has no machine to start: try another zone or region.",
            "Large GPU machines take long to boot: allow a longer provision deadline.",
        ),
    ),
    (
        "install",
        (
            "The machine cannot reach its package mirror or image registry: check egress, DNS and proxy.",
            "Installing GPU drivers and the engine takes longer than the deadline: use an image that has them.",
        ),
    ),
    (
        "load",
        (
            "The model is large for the network or disk: keep weights in the same region, or allow a longer deadline.",
            "The model cannot be downloaded: check the access token for a gated model, and the bucket.",
        ),
    ),
    (
        "engine",
        (
            "The engine compiles or captures graphs for long: allow a longer deadline.",
            "The engine hangs or runs out of GPU memory: look at the last lines of its log.",
        ),
    ),
    (
        "regist",
        (
            "The node cannot reach the control plane: check its public URL and the machine's egress.",
            "The agent stopped: look at the machine's boot log.",
        ),
    ),
    ("tear", ("The cloud is slow to confirm a termination; Skyfleet keeps asking.",)),
)

_LIKELY_ANY = ("The cloud or the machine is slow or stuck.", "A firewall is between the machine and the control plane.")


def likely_causes(stage_label: str) -> tuple[str, ...]:
    """What is likely behind a time-out in the stage with this label."""
    lowered = stage_label.lower()
    return next((causes for word, causes in _LIKELY if word in lowered), _LIKELY_ANY)


_ENGINE_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("out of memory", "outofmemory", "oom-kill", "oomkill", "no available memory for the cache blocks", "kv cache"),
        "The model does not fit in GPU memory: choose a GPU with more memory, more GPUs (tensor parallelism), "
        "a shorter context (`max_model_len`) or a quantised model.",
    ),
    (
        ("gated repo", "401 client error", "403 client error", "repositorynotfound", "access to model", "hf_token"),
        "The model cannot be read: set the access token for a gated model, and check the model's name.",
    ),
    (
        ("unrecognized arguments", "invalid choice", "unexpected keyword", "error: argument", "usage:"),
        "The engine does not know one of its arguments: correct `engine_args` for this engine version.",
    ),
    (
        ("cuda driver", "cuda error", "no cuda", "nvidia driver", "driver version", "nvml", "libcuda"),
        "The GPU driver does not fit the engine: use an image with a newer driver.",
    ),
    (("address already in use",), "The engine's port is taken on that machine: choose another port."),
    (
        ("no such file", "not found", "no module named"),
        "Something the engine needs is not on the machine: check image and paths.",
    ),
)


def engine_steps(text: str) -> list[str]:
    """What to try after an engine that did not start, from the words of its log."""
    lowered = text.lower()
    found = [step for signs, step in _ENGINE_CAUSES if any(sign in lowered for sign in signs)]
    return [
        *found,
        "Read the last lines of the engine's log below.",
        "Correct the engine arguments, the model or the GPU type, then launch again.",
    ]
