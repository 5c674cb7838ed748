"""boto3 on the lab's cloud."""

from __future__ import annotations

import asyncio
from typing import Any

import boto3
from botocore.config import Config

from tests.labs.aws.catalog import IMAGE
from tests.labs.aws.lab import AwsLab


def client(lab: AwsLab, service: str = "ec2", region: str = "us-east-1", *, attempts: int = 1) -> Any:
    """A client of the lab's cloud."""
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=lab.env["AWS_ENDPOINT_URL"],
        aws_access_key_id="lab",
        aws_secret_access_key="lab",
        config=Config(retries={"total_max_attempts": attempts}, proxies={}),
    )


async def run_instance(ec2: Any, *, spot: bool = False, **parameters: Any) -> str:
    """Ask for one instance; its id."""
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
    asked = {"ImageId": IMAGE, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1, **market, **parameters}
    answer = await asyncio.to_thread(ec2.run_instances, **asked)
    return str(answer["Instances"][0]["InstanceId"])
