"""What Skyfleet needs to know of an inference engine: its command line, its arguments, its health and its figures."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skyfleet.engines.arguments import Argument, EngineArgumentError, check_characters, check_value, json_text
from skyfleet.engines.prometheus import samples

#: Stages that can be read from an engine's log, in order.
LOADING_MODEL = "LOADING_MODEL"
STARTING_ENGINE = "STARTING_ENGINE"


class EngineUnavailable(Exception):
    """The engine cannot run on this machine, or cannot read this model; the text says why."""


@dataclass(frozen=True)
class EngineLaunch:
    """One start of an engine on one machine.

    `model_source` is where the weights are (a path, a hub id or a bucket URL; None: `model_name` is a hub id), `args`
    the user's arguments (already validated), `command` the user's own argument vector (the `command` engine only),
    `work_dir` a folder that the engine may write to, `manifest` the model manifest that the agent wrote there, and
    `python` the interpreter for engines that are Python programs.
    """

    model_name: str
    host: str
    port: int
    work_dir: str
    model_source: str | None = None
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    manifest: str | None = None
    python: str = sys.executable

    @property
    def model(self) -> str:
        """What the engine loads: the source of the weights, or the model's name as a hub id."""
        return self.model_source or self.model_name


@dataclass(frozen=True)
class EngineMetrics:
    """An engine's load. Requests are counts, `kv_cache_usage` is a fraction of 1; None: the engine does not say."""

    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    generated_tokens_total: float | None = None


@dataclass(frozen=True)
class MetricNames:
    """Prometheus names of an engine's figures; the first of each that is present counts (older versions follow)."""

    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    kv_cache_usage: tuple[str, ...] = ()
    generated_tokens_total: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """One kind of inference server. Subclasses say how it is started; the fields say the rest.

    `health_path` answers 200 once the engine serves; `fallback_health_path` is asked where the first answers 404.
    `requirement` is what a real machine's set-up installs for it, pinned; None: nothing.
    `refused` are arguments that exist but may not be given, with the reason. `stage_patterns` are matched against the
    engine's own log lines, in order.
    """

    name: str = ""
    title: str = ""
    needs_gpu: bool = False
    requirement: str | None = None
    health_path: str = "/health"
    fallback_health_path: str | None = None
    metrics_path: str | None = "/metrics"
    metric_names: MetricNames = MetricNames()
    allowed_args: Mapping[str, Argument] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    stage_patterns: tuple[tuple[re.Pattern[str], str], ...] = ()

    def command(self, launch: EngineLaunch) -> list[str]:
        """The argument vector that starts the engine in the foreground. Never given to a shell."""
        raise NotImplementedError

    def environment(self, launch: EngineLaunch) -> dict[str, str]:
        """Variables that the engine needs beside the agent's own and the launch's."""
        return {}

    def available(self, work_dir: str) -> str | None:
        """Why the engine cannot run on this machine; None when it can."""
        raise NotImplementedError

    def prepare(self, launch: EngineLaunch) -> None:
        """What has to be done once before the first start. Raises `EngineUnavailable` with the reason."""
        reason = self.available(launch.work_dir)
        if reason:
            raise EngineUnavailable(reason)

    def stage_of(self, log_line: str) -> str | None:
        """The stage that this line of the engine's log proves: `LOADING_MODEL`, `STARTING_ENGINE` or None."""
        return next((stage for pattern, stage in self.stage_patterns if pattern.search(log_line)), None)

    def parse_metrics(self, text: str) -> EngineMetrics:
        """Figures from the text of `metrics_path` (Prometheus exposition format).

        An engine that runs as several data-parallel ranks reports each under its own labels: requests and tokens are
        summed, and the fullest cache counts, because it is the one that makes requests wait.
        """
        found: dict[str, list[float]] = {}
        for name, value in samples(text):
            found.setdefault(name, []).append(value)

        def values(names: tuple[str, ...]) -> list[float]:
            return next((found[name] for name in names if name in found), [])

        running, waiting = values(self.metric_names.running), values(self.metric_names.waiting)
        usage, tokens = values(self.metric_names.kv_cache_usage), values(self.metric_names.generated_tokens_total)
        return EngineMetrics(
            running=int(sum(running)) if running else None,
            waiting=int(sum(waiting)) if waiting else None,
            kv_cache_usage=max(usage) if usage else None,
            generated_tokens_total=sum(tokens) if tokens else None,
        )

    def normalise_args(self, args: Mapping[str, Any] | Sequence[Any]) -> list[str]:
        """Arguments as people write them, as one canonical vector: `--long-name value`, switches alone.

        Takes `{"max-model-len": 8192, "enable-prefix-caching": True}` or `["--max-model-len=8192", …]`; aliases become
        long names, underscores hyphens. A false switch becomes `--no-…` where the engine has that, and is left out
        where off is the only other state. Raises `EngineArgumentError` for what cannot be an argument (it does
        not check the allow-list: that is `validate_args`).
        """
        if isinstance(args, Mapping):
            return [token for name, value in args.items() for token in self._from_pair(str(name), value)]
        if isinstance(args, (str, bytes)):
            raise EngineArgumentError("args", "must be a list of strings or an object, not one string", [])
        tokens: list[str] = []
        for item in args:
            if isinstance(item, bool) or not isinstance(item, (str, int, float)):
                raise EngineArgumentError(json_text(item), "an argument is a string or a number", [])
            text = str(item)
            name, equals, value = text.partition("=")
            if text.startswith("--") and equals:
                tokens += [self._long_name(name), value]
            elif text.startswith("-") and not _NUMBER.fullmatch(text):
                tokens.append(self._long_name(text))
            else:
                tokens.append(text)
        return tokens

    def validate_args(self, args: Sequence[str]) -> None:
        """Check a canonical vector (see `normalise_args`) against the allow-list.

        Raises `EngineArgumentError` naming the argument, the reason, and what would be accepted: for an argument that
        is outside the list or set by Skyfleet itself, a missing or ill-typed value, an argument given twice, shell
        metacharacters, and paths that leave the engine's folder.
        """
        seen: set[str] = set()
        position = 0
        tokens = list(args)
        while position < len(tokens):
            token = tokens[position]
            check_characters(token, token)
            if not token.startswith("-"):
                raise EngineArgumentError(token, "is a value without an argument before it", self._names())
            name = self._long_name(token)
            argument = self._allowed(name)
            subject = name if name in self.allowed_args else "--" + name[len("--no-") :]
            if subject in seen:
                raise EngineArgumentError(name, "is given twice", [])
            seen.add(subject)
            position += 1
            if argument.kind == "switch":
                continue
            if position == len(tokens) or tokens[position].startswith("--"):
                raise EngineArgumentError(name, f"needs a value: {argument.expects}", argument.accepted)
            check_value(name, argument, tokens[position])
            position += 1

    def validate_command(self, command: Sequence[str]) -> None:
        """Check the user's own argument vector; only the `command` engine takes one. Raises `EngineArgumentError`."""
        if command:
            raise EngineArgumentError("command", f"is only for the engine `command`, not for `{self.name}`", [])

    def _names(self) -> list[str]:
        return sorted(self.allowed_args)

    def _long_name(self, token: str) -> str:
        for name, argument in self.allowed_args.items():
            if token in argument.aliases:
                return name
        return "--" + token[2:].replace("_", "-") if token.startswith("--") else token

    def _allowed(self, name: str) -> Argument:
        if name in self.refused:
            raise EngineArgumentError(name, self.refused[name], self._names())
        if name in self.allowed_args:
            return self.allowed_args[name]
        positive = self.allowed_args.get("--" + name[len("--no-") :]) if name.startswith("--no-") else None
        if positive is not None and positive.negatable:
            return positive
        raise EngineArgumentError(name, f"is not in the allow-list of engine `{self.name}`", self._names())

    def _from_pair(self, name: str, value: Any) -> list[str]:
        token = self._long_name(name if name.startswith("-") else f"--{name}")
        if value is True:
            return [token]
        if value is False:
            argument = self.allowed_args.get(token)
            if argument is None:
                self._allowed(token)
            return [f"--no-{token[2:]}"] if argument is not None and argument.negatable else []
        if value is None:
            raise EngineArgumentError(token, "has no value; leave it out instead of giving null", [])
        return [token, value if isinstance(value, str) else json_text(value)]


_NUMBER = re.compile(r"-\d+(\.\d+)?")


def patterns(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Compile (regular expression, stage) pairs for `Engine.stage_patterns`."""
    return tuple((re.compile(expression), stage) for expression, stage in pairs)
